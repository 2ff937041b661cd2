/* The calls of CUDA's runtime that must do something. All others of its names return success, see libraries.py. */
#include <stdlib.h>
#include <string.h>

#define MEMORY ((size_t)8 << 30)
#define MAJOR 8 /* compute capability 8.0 */
#define MINOR 0

static int grant(void **place, size_t bytes) {
  if (posix_memalign(place, 256, bytes ? bytes : 256)) return 2; /* out of memory */
  memset(*place, 0, bytes);
  return 0;
}

int cudaMalloc(void **place, size_t bytes) { return grant(place, bytes); }
int cudaMallocHost(void **place, size_t bytes) { return grant(place, bytes); }
int cudaHostAlloc(void **place, size_t bytes, unsigned flags) { return grant(place, bytes); }
int cudaMallocAsync(void **place, size_t bytes, void *stream) { return grant(place, bytes); }
int cudaMallocFromPoolAsync(void **place, size_t bytes, void *pool, void *stream) { return grant(place, bytes); }
int cudaFree(void *place) { free(place); return 0; }
int cudaFreeHost(void *place) { free(place); return 0; }
int cudaFreeAsync(void *place, void *stream) { free(place); return 0; }

/* Nothing has been computed: what comes back from the device is zeros, not what some buffer held before. */
static int copy(void *to, const void *from, size_t bytes, int kind) {
  if (kind == 2) memset(to, 0, bytes);
  else memmove(to, from, bytes);
  return 0;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) { return copy(to, from, bytes, kind); }
int cudaMemset(void *to, int value, size_t bytes) { memset(to, value, bytes); return 0; }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { memset(to, value, bytes); return 0; }
int cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = MEMORY; return 0; }
int cudaMemPoolCreate(void **pool, const void *properties) { return grant(pool, 8); }

int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t rows, int kind, void *stream) {
  for (size_t row = 0; row < rows; row++) memmove(to + row * to_pitch, from + row * from_pitch, width);
  return 0;
}

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
const char *cudaGetErrorString(int error) { return "no error"; }
const char *cudaGetErrorName(int error) { return "cudaSuccess"; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 75: *value = MAJOR; break;
    case 76: *value = MINOR; break;
    case 16: *value = 108; break;             /* multiprocessors */
    case 81: case 97: *value = 163840; break; /* shared memory of a multiprocessor, of a block */
    default: *value = 1024;
  }
  return 0;
}

/* cudaDeviceProp, as CUDA 13 lays it out */
int cudaGetDeviceProperties(char *of, int device) {
  static const int most[] = {1024, 1024, 64, 2147483647, 65535, 65535};
  memset(of, 0, 1008);
  strcpy(of, "no device");
  *(size_t *)(of + 288) = MEMORY;
  *(size_t *)(of + 296) = 49152; /* shared memory of a block */
  *(int *)(of + 304) = 65536;    /* registers of a block */
  *(int *)(of + 308) = 32;       /* warp */
  *(int *)(of + 320) = 1024;     /* threads of a block */
  memcpy(of + 324, most, sizeof most);
  *(int *)(of + 360) = MAJOR;
  *(int *)(of + 364) = MINOR;
  *(size_t *)(of + 368) = 512;
  *(int *)(of + 384) = 108;
  return 0;
}

int cudaStreamCreate(void **stream) { return grant(stream, 8); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return grant(stream, 8); }
int cudaEventCreate(void **event) { return grant(event, 8); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return grant(event, 8); }
int cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return 0; }
int cudaStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return 0; }
int cudaPointerGetAttributes(int *attributes, const void *place) { memset(attributes, 0, 32); attributes[0] = 2; return 0; }
int cudaFuncGetAttributes(char *attributes, const void *kernel) { memset(attributes, 0, 64); *(int *)(attributes + 24) = 1024; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads, size_t shared, unsigned flags) { *blocks = 2; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long flags, int *found) { *entry = 0; *found = 1; return 0; }

static void *fat_binary[8];
void **__cudaRegisterFatBinary(void *binary) { return fat_binary; }
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream) { *shared = 0; *(void **)stream = 0; return 0; }
