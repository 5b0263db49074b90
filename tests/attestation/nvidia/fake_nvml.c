/* A stand-in for NVIDIA's management library, with just the functions that evidence needs. The environment says what it
   answers: FAKE_GPUS, FAKE_ARCH, FAKE_ERROR ("function=code"), FAKE_CC, FAKE_DEVTOOLS, FAKE_MULTI, FAKE_READY, and
   FAKE_FOLDER with NONCE, and report.N and chain.N of each GPU. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned number(const char *name, unsigned otherwise) {
    const char *text = getenv(name);
    return text ? (unsigned)atoi(text) : otherwise;
}

static unsigned failure(const char *function) {
    const char *text = getenv("FAKE_ERROR");
    size_t length = strlen(function);
    return text && !strncmp(text, function, length) && text[length] == '=' ? (unsigned)atoi(text + length + 1) : 0;
}

static unsigned load(const char *name, int gpu, uint8_t *into, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, gpu < 0 ? "%s/%s" : "%s/%s.%d", getenv("FAKE_FOLDER"), name, gpu);
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    unsigned length = (unsigned)fread(into, 1, size, file);
    fclose(file);
    return length;
}

unsigned nvmlInitWithFlags(unsigned flags) { (void)flags; return failure("init"); }
unsigned nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(unsigned code) { (void)code; return "a fake error"; }
unsigned nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_GPUS", 1); return 0; }
unsigned nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(uintptr_t)(index + 1); return 0; }
unsigned nvmlDeviceGetArchitecture(void *device, unsigned *arch) { (void)device; *arch = number("FAKE_ARCH", 9); return 0; }
unsigned nvmlSystemGetConfComputeGpusReadyState(unsigned *ready) { *ready = number("FAKE_READY", 1); return 0; }

struct settings { unsigned version, environment, cc, devtools, multi; };
unsigned nvmlSystemGetConfComputeSettings(struct settings *settings) {
    settings->cc = number("FAKE_CC", 1);
    settings->devtools = number("FAKE_DEVTOOLS", 0);
    settings->multi = number("FAKE_MULTI", 0);
    return failure("settings");
}

struct certificate { unsigned size, attestation_size; uint8_t chain[0x1000], attestation[0x1400]; };
unsigned nvmlDeviceGetConfComputeGpuCertificate(void *device, struct certificate *out) {
    out->attestation_size = load("chain", (int)(uintptr_t)device - 1, out->attestation, sizeof out->attestation);
    return failure("certificate");
}

struct report { unsigned cec, size, cec_size; uint8_t nonce[32], report[0x2000], cec_report[0x1000]; };
unsigned nvmlDeviceGetConfComputeGpuAttestationReport(void *device, struct report *out) {
    uint8_t nonce[32];
    if (load("NONCE", -1, nonce, 32) != 32 || memcmp(nonce, out->nonce, 32)) return 2; /* NVML_ERROR_INVALID_ARGUMENT */
    out->size = load("report", (int)(uintptr_t)device - 1, out->report, sizeof out->report);
    return failure("report");
}
