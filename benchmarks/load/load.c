// A closed-loop HTTP/1.1 load generator: one thread, epoll, kept connections, one JSON line at the end.
//
//     load HOST:PORT|SOCKET CONNECTIONS SECONDS BODY_FILE PATH [HEADER]...
//
// Each connection sends the same POST again as soon as its answer is complete. Counts and times are of the requests that
// ended after the first 0.3 s; "all_requests" and "all_events" count the warm-up too, for dividing CPU time.
// It understands answers with Content-Length or chunked, which is all that is sent here; times are in µs.
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

enum { HEAD_SIZE = 16384, MAX_SAMPLES = 1 << 22, WARM_UP_NS = 300000000 };
enum state { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, LAST_LINE };

typedef struct {
    int fd, status, is_stream, must_close, head_len, matched;
    enum state state;
    long left;
    long long sent_at, first_event_at;
    char head[HEAD_SIZE], line[32];
} connection;

typedef struct {
    float *us;
    long count;
} samples;

static struct sockaddr_storage address;
static socklen_t address_size;
static char *request;
static int request_len, poller, warm;
static long all_requests, all_events, errors, not_200;
static samples latency, first_event;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void record(samples *s, long long ns) {
    if (warm && s->count < MAX_SAMPLES) s->us[s->count++] = ns / 1000.0;
}

static void dial(connection *c) {
    int on = 1;
    c->fd = socket(address.ss_family, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, address_size)) {
        perror("load: connect");
        exit(1);
    }
    if (address.ss_family == AF_INET) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void redial(connection *c) {
    close(c->fd);
    dial(c);
}

static void ask(connection *c) {
    c->state = HEAD;
    c->head_len = c->matched = c->is_stream = c->must_close = 0;
    c->first_event_at = 0;
    c->sent_at = now_ns();
    for (int sent = 0, tries = 0; sent < request_len;) {
        int n = send(c->fd, request + sent, request_len - sent, MSG_NOSIGNAL);
        if (n > 0) {
            sent += n;
            continue;
        }
        errors++;
        if (++tries > 3) exit(1);
        redial(c);
        sent = 0;
    }
}

static void finish(connection *c) {
    long long now = now_ns();
    all_requests++;
    not_200 += c->status != 200;
    record(&latency, now - c->sent_at);
    if (c->first_event_at) record(&first_event, c->first_event_at - c->sent_at);
    if (c->must_close) redial(c);
    ask(c);
}

static void count_events(connection *c, const char *p, long n) {  // "data: ", also across reads
    static const char mark[] = "data: ";
    if (!c->is_stream) return;
    for (long i = 0; i < n; i++) {
        c->matched = p[i] == mark[c->matched] ? c->matched + 1 : p[i] == mark[0];
        if (mark[c->matched]) continue;
        c->matched = 0;
        all_events++;
        if (!c->first_event_at) c->first_event_at = now_ns();
    }
}

static int take_head(connection *c, const char *p, int n) {  // how many of the n bytes belong to the head
    int before = c->head_len, take = n < HEAD_SIZE - 1 - before ? n : HEAD_SIZE - 1 - before;
    memcpy(c->head + before, p, take);
    c->head[c->head_len += take] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), *field;
    if (!end) {
        if (c->head_len == HEAD_SIZE - 1) exit(1);
        return take;
    }
    end[2] = 0;
    c->status = atoi(c->head + 9);
    c->is_stream = strcasestr(c->head, "text/event-stream") != NULL;
    c->must_close = strcasestr(c->head, "\r\nconnection: close") != NULL;
    if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) {
        c->state = CHUNK_SIZE;
        c->line[0] = 0;
    } else if ((field = strcasestr(c->head, "\r\ncontent-length:"))) {
        c->state = BODY;
        c->left = atol(field + 17);
    } else exit(1);
    return end + 4 - c->head - before;
}

static int take_line(connection *c, char ch) {  // 1 when a line is whole
    size_t n = strlen(c->line);
    if (ch == '\n') return 1;
    if (n + 1 < sizeof c->line && ch != '\r') c->line[n] = ch, c->line[n + 1] = 0;
    return 0;
}

static void feed(connection *c, const char *p, long n) {
    while (n > 0) {
        long take = 1;
        switch (c->state) {
        case HEAD:
            take = take_head(c, p, n);
            if (c->state == BODY && !c->left) return finish(c);
            break;
        case BODY:
        case CHUNK:
            take = n < c->left ? n : c->left;
            count_events(c, p, take);
            if (c->left -= take) break;
            if (c->state == BODY) return finish(c);
            c->state = CHUNK_END;
            break;
        case CHUNK_END:
            if (*p != '\n') break;
            c->state = CHUNK_SIZE;
            c->line[0] = 0;
            break;
        case CHUNK_SIZE:
            if (!take_line(c, *p)) break;
            c->left = strtol(c->line, NULL, 16);
            c->state = c->left ? CHUNK : LAST_LINE;
            break;
        case LAST_LINE:
            if (*p == '\n') return finish(c);
            break;
        }
        p += take, n -= take;
    }
}

static void serve(connection *c) {
    static char buffer[1 << 18];
    long n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0) return feed(c, buffer, n);
    if (n < 0 && errno == EAGAIN) return;
    errors++;
    redial(c);
    ask(c);
}

static void set_address(char *text) {
    if (*text == '/') {
        struct sockaddr_un *un = (void *)&address;
        un->sun_family = AF_UNIX;
        strncpy(un->sun_path, text, sizeof un->sun_path - 1);
        address_size = sizeof *un;
        return;
    }
    struct sockaddr_in *in = (void *)&address;
    char *colon = strrchr(text, ':');
    if (!colon) exit(2);
    *colon = 0;
    in->sin_family = AF_INET;
    in->sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, text, &in->sin_addr) != 1) exit(2);
    address_size = sizeof *in;
}

static void write_request(const char *body_file, const char *path, char **headers, int count) {
    static char body[1 << 22];
    FILE *file = fopen(body_file, "rb");
    if (!file) exit(2);
    int body_len = fread(body, 1, sizeof body, file);
    fclose(file);
    request = malloc(body_len + 8192);
    char *at = request;
    const char *type = "Content-Type: application/json\r\n";
    for (int i = 0; i < count; i++)
        if (!strncasecmp(headers[i], "Content-Type:", 13)) type = "";
    at += sprintf(at, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Length: %d\r\n", path, type, body_len);
    for (int i = 0; i < count; i++) at += sprintf(at, "%.1000s\r\n", headers[i]);
    at += sprintf(at, "\r\n");
    memcpy(at, body, body_len);
    request_len = at + body_len - request;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(samples *s, double q) {
    return s->count ? s->us[(long)(q * (s->count - 1) + 0.5)] : 0;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int count = atoi(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    set_address(argv[1]);
    write_request(argv[4], argv[5], argv + 6, argc - 6);
    latency.us = malloc(MAX_SAMPLES * sizeof(float));
    first_event.us = malloc(MAX_SAMPLES * sizeof(float));
    poller = epoll_create1(0);
    connection *all = calloc(count, sizeof(connection));
    for (int i = 0; i < count; i++) dial(&all[i]);
    for (int i = 0; i < count; i++) ask(&all[i]);
    long long start = now_ns() + WARM_UP_NS, end = start + (long long)(atof(argv[3]) * 1e9), now;
    while ((now = now_ns()) < end) {
        struct epoll_event ready[256];
        warm = now >= start;
        int n = epoll_wait(poller, ready, 256, 50);
        for (int i = 0; i < n; i++) serve(ready[i].data.ptr);
    }
    qsort(latency.us, latency.count, sizeof(float), ascending);
    qsort(first_event.us, first_event.count, sizeof(float), ascending);
    printf("{\"rps\":%.2f,\"p50\":%.1f,\"p99\":%.1f,\"first50\":%.1f,\"all_requests\":%ld,\"all_events\":%ld,\"errors\":%ld,\"not_200\":%ld}\n",
           latency.count / ((now - start) / 1e9), quantile(&latency, .5), quantile(&latency, .99), quantile(&first_event, .5),
           all_requests, all_events, errors, not_200);
    return 0;
}
