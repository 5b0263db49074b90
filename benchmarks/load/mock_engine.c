// An engine that costs nothing: one thread, epoll, HTTP/1.1 on a TCP port and a Unix socket.
//
//     mock_engine PORT SOCKET
//
// POST with "stream": true   server-sent events, one HTTP chunk each, as vLLM writes them: 128, unless said otherwise
// any other POST             the same JSON answer, 1.2 KB
// GET /pace?us=N[&events=M]  one event per stream every N µs from now on; 0: as fast as they are taken. M events in a stream
// any other GET              200, for health checks
//
// Streams share one step clock, as an engine's steps do: at each step every stream gets one event.
// A request with a chunked body is refused: no client here sends one.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 4096, IN_SIZE = 1 << 20, OUT_SIZE = 1 << 16, EVENTS = 128 };

typedef struct {
    int fd, streaming, events_left;
    int in_len, out_len, out_sent;
    char in[IN_SIZE], out[OUT_SIZE];
} connection;

static connection *connections[MAX_FD];
static int poller, tcp_listener, unix_listener, streams, events_each = EVENTS;
static long pace_us;

static char answer[4096], stream_head[512], event[512], stream_end[1024];

#define ID "\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"created\":1760000000,\"model\":\"mock\","
#define CHUNK "{" ID "\"object\":\"chat.completion.chunk\",\"choices\":["
#define USAGE "\"usage\":{\"prompt_tokens\":512,\"total_tokens\":640,\"completion_tokens\":128}"

static void add_chunk(char *to, const char *text) {
    sprintf(to + strlen(to), "%zx\r\n%s\r\n", strlen(text), text);
}

static void write_answers(void) {
    char words[1024] = "", body[2048];
    for (int i = 0; i < EVENTS; i++) strcat(words, i % 9 == 8 ? " token," : " word");
    sprintf(body, "{" ID "\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
            "\"content\":\"%s\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
            USAGE "}", words);
    sprintf(answer, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
    strcpy(stream_head, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
           "transfer-encoding: chunked\r\n\r\n");
    add_chunk(event, "data: " CHUNK "{\"index\":0,\"delta\":{\"content\":\" a token or so\"},\"logprobs\":null,"
              "\"finish_reason\":null}]}\n\n");
    add_chunk(stream_end, "data: " CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n");
    add_chunk(stream_end, "data: " CHUNK "]," USAGE "}\n\n");
    add_chunk(stream_end, "data: [DONE]\n\n");
    strcat(stream_end, "0\r\n\r\n");
}

static long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void watch(int operation, int fd, unsigned what) {
    struct epoll_event e = {.events = what, .data.fd = fd};
    epoll_ctl(poller, operation, fd, &e);
}

static void drop(connection *c) {
    streams -= c->streaming;
    connections[c->fd] = NULL;
    close(c->fd);
    free(c);
}

static int flush(connection *c) {  // -1: the peer is gone
    while (c->out_sent < c->out_len) {
        int n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno != EAGAIN) return -1;
            watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT);
            return 0;
        }
        c->out_sent += n;
    }
    c->out_sent = c->out_len = 0;
    return 0;
}

static int put(connection *c, const char *text) {
    int n = strlen(text);
    if (c->out_len + n > OUT_SIZE) return -1;  // it asks without reading
    memcpy(c->out + c->out_len, text, n);
    c->out_len += n;
    return flush(c);
}

static int answer_one(connection *c, const char *head, const char *body, int body_len) {
    if (!strncmp(head, "GET ", 4)) {
        const char *pace = strstr(head, "/pace?us="), *each = strstr(head, "&events=");
        if (pace) pace_us = atol(pace + 9), events_each = each ? atoi(each + 8) : EVENTS;
        return put(c, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}");
    }
    const char *stream = memmem(body, body_len, "\"stream\":", 9);
    if (!stream || strncmp(stream + 9 + (stream[9] == ' '), "true", 4)) return put(c, answer);
    c->streaming = 1;
    c->events_left = events_each;
    streams++;
    return put(c, stream_head);
}

static int answer_all(connection *c) {  // every whole request that has arrived, one at a time
    while (!c->streaming) {
        c->in[c->in_len] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return 0;
        int head_len = end + 4 - c->in, body_len = 0;
        *end = 0;
        const char *length = strcasestr(c->in, "\r\ncontent-length:");
        if (length) body_len = atoi(length + 17);
        if (strcasestr(c->in, "\r\ntransfer-encoding:")) return -1;
        *end = '\r';
        if (c->in_len < head_len + body_len) return 0;
        if (answer_one(c, c->in, c->in + head_len, body_len) < 0) return -1;
        c->in_len -= head_len + body_len;
        memmove(c->in, c->in + head_len + body_len, c->in_len);
    }
    return 0;
}

static int step(connection *c) {  // one event, unless the reader is behind
    if (c->out_len) return 0;
    if (c->events_left--) return put(c, event);
    c->streaming = 0;
    streams--;
    return put(c, stream_end) < 0 ? -1 : answer_all(c);
}

static void accept_one(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0 || fd >= MAX_FD) exit(1);
    if (listener == tcp_listener) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connections[fd] = calloc(1, sizeof(connection));
    connections[fd]->fd = fd;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void serve(connection *c, unsigned what) {
    if (what & EPOLLOUT) {
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN);
        if (flush(c) < 0) return drop(c);
    }
    if (!(what & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    int n = recv(c->fd, c->in + c->in_len, IN_SIZE - 1 - c->in_len, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return drop(c);
    c->in_len += n;
    if (answer_all(c) < 0) drop(c);
}

static int listen_on(int family, struct sockaddr *address, socklen_t size) {
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address, size) || listen(fd, 1024)) {
        perror("mock_engine: bind");
        exit(1);
    }
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    write_answers();
    poller = epoll_create1(0);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strncpy(un.sun_path, argv[2], sizeof un.sun_path - 1);
    tcp_listener = listen_on(AF_INET, (void *)&in, sizeof in);
    unix_listener = listen_on(AF_UNIX, (void *)&un, sizeof un);
    for (long next = 0;;) {
        long wait_us = streams ? (pace_us ? next - now_us() : 0) : 1000000000L;
        if (wait_us < 0) wait_us = 0;
        struct timespec wait = {wait_us / 1000000, wait_us % 1000000 * 1000};
        struct epoll_event ready[256];
        int n = epoll_pwait2(poller, ready, 256, &wait, NULL), idle = !streams;
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == tcp_listener || fd == unix_listener) accept_one(fd);
            else if (connections[fd]) serve(connections[fd], ready[i].events);
        }
        if (idle && streams) next = now_us() + pace_us;
        if (!streams || now_us() < next) continue;
        next = now_us() + pace_us;
        for (int fd = 0; fd < MAX_FD; fd++)
            if (connections[fd] && connections[fd]->streaming && step(connections[fd]) < 0) drop(connections[fd]);
    }
}
