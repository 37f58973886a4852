// Second question for the CUDA driver to come: memory that the program has already, at an address that malloc chose. Can GPU pages be
// laid at that address afterwards? And does the CPU's side stay ours: protection, discarding, faults through userfaultfd?
// Prints one line per finding. Needs no CUDA headers: cc -O2 host_first.c -o host_first -ldl && ./host_first
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/ioctl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

typedef int CUresult; typedef int CUdevice; typedef void *CUcontext, *CUmodule, *CUfunction, *CUstream;
typedef unsigned long long CUdeviceptr, CUhandle;
typedef struct { int type, id; } Location;
typedef struct { int type; int requestedHandleTypes; Location location; void *win32; struct { unsigned char c, g; unsigned short u; unsigned char r[4]; } flags; } AllocProp;
typedef struct { Location location; int flags; } AccessDesc;
#define F(name, ...) static CUresult (*name)(__VA_ARGS__);
F(cuInit, unsigned) F(cuDeviceGet, CUdevice *, int) F(cuDeviceGetAttribute, int *, int, CUdevice) F(cuDevicePrimaryCtxRetain, CUcontext *, CUdevice)
F(cuCtxSetCurrent, CUcontext) F(cuCtxSynchronize, void) F(cuMemAddressReserve, CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long)
F(cuMemGetAllocationGranularity, size_t *, const AllocProp *, int) F(cuMemCreate, CUhandle *, size_t, const AllocProp *, unsigned long long)
F(cuMemMap, CUdeviceptr, size_t, size_t, CUhandle, unsigned long long) F(cuMemSetAccess, CUdeviceptr, size_t, const AccessDesc *, size_t)
F(cuMemUnmap, CUdeviceptr, size_t) F(cuMemcpyHtoD, CUdeviceptr, const void *, size_t) F(cuMemcpyDtoH, void *, CUdeviceptr, size_t)
F(cuModuleLoadData, CUmodule *, const void *) F(cuModuleGetFunction, CUfunction *, CUmodule, const char *)
F(cuLaunchKernel, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **)
F(cuMemHostRegister, void *, size_t, unsigned) F(cuMemHostUnregister, void *) F(cuDriverGetVersion, int *)
static void *lib;
static void load(void *slot, const char *name, const char *v2) { void *p = v2 ? dlsym(lib, v2) : 0; if (!p) p = dlsym(lib, name); if (!p) { printf("missing symbol %s\n", name); exit(1); } *(void **)slot = p; }
#define L(n) load(&n, #n, 0)
#define L2(n) load(&n, #n, #n "_v2")
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
#define TRY(x) ({ CUresult r_ = (x); printf("%-58.58s -> %d\n", #x, r_); r_; })
#define M (2ul << 20)
static const char *ptx = ".version 7.0\n.target sm_52\n.address_size 64\n.visible .entry inc(.param .u64 p, .param .u32 n){\n.reg .pred q; .reg .b32 r<6>; .reg .b64 d<4>;\n"
 "ld.param.u64 d1,[p]; ld.param.u32 r1,[n]; mov.u32 r2,%ctaid.x; mov.u32 r3,%ntid.x; mov.u32 r4,%tid.x; mad.lo.s32 r2,r2,r3,r4;\n"
 "setp.ge.u32 q,r2,r1; @q bra E; mul.wide.u32 d2,r2,4; add.s64 d1,d1,d2; ld.global.u32 r5,[d1]; add.u32 r5,r5,1; st.global.u32 [d1],r5;\nE: ret;}\n";
static const char *spin_ptx = ".version 7.0\n.target sm_52\n.address_size 64\n.visible .entry spin(.param .u64 p, .param .u32 n){\n.reg .pred q; .reg .b32 r<4>; .reg .b64 d<8>;\n"
 "ld.param.u64 d1,[p]; ld.param.u32 r1,[n]; mul.wide.u32 d2,r1,1000; mov.u64 d3,%globaltimer; add.s64 d4,d3,d2; mov.u32 r2,0;\n"
 "L: add.u32 r2,r2,1; st.volatile.global.u32 [d1],r2; mov.u64 d5,%globaltimer; setp.lt.u64 q,d5,d4; @q bra L; ret;}\n";
static CUfunction spin; static CUfunction inc; static CUdevice dev; static CUcontext ctx;
static int start(void) {
  CUmodule m; if (cuInit(0)) { printf("cuInit fails\n"); return 1; }
  cuDeviceGet(&dev, 0); if (cuDevicePrimaryCtxRetain(&ctx, dev) || cuCtxSetCurrent(ctx)) return 1;
  if (cuModuleLoadData(&m, spin_ptx) || cuModuleGetFunction(&spin, m, "spin")) { printf("no spin kernel\n"); return 1; }
  return cuModuleLoadData(&m, ptx) || cuModuleGetFunction(&inc, m, "inc"); }
static CUresult spin_for(CUdeviceptr p, unsigned us) { void *a[] = {&p, &us}; return cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, 0, a, 0); }
static CUresult launch(CUdeviceptr p, unsigned n) { void *a[] = {&p, &n}; CUresult r = cuLaunchKernel(inc, (n + 255) / 256, 1, 1, 256, 1, 1, 0, 0, a, 0); return r ? r : cuCtxSynchronize(); }


static int where(CUdeviceptr va) { char line[512]; int n = 0; FILE *f = fopen("/proc/self/maps", "r"); while (fgets(line, sizeof line, f)) { unsigned long a, b; sscanf(line, "%lx-%lx", &a, &b); if (a <= va && va < b) { printf("  the kernel shows there: %s", line); n++; } } fclose(f); if (!n) printf("  the kernel shows nothing there\n"); return n; }
static int uffd = -1;
static void *serve(void *x) { struct uffd_msg m; while (read(uffd, &m, sizeof m) == sizeof m) { if (m.event != UFFD_EVENT_PAGEFAULT) continue; static uint32_t page[1024] __attribute__((aligned(4096))); page[0] = 4711; struct uffdio_copy c = {m.arg.pagefault.address & ~4095ul, (uint64_t)page, 4096, 0, 0}; ioctl(uffd, UFFDIO_COPY, &c); } return x; }

// Can the driver be given the address of memory that is there already? The pages are moved away, the hole is reserved, and they are moved back.
static char *hole(CUdeviceptr at, size_t size, size_t around) {
  size_t all = size + 2 * around; char *mine = at ? (char *)at : (char *)(((uintptr_t)mmap(0, all + M, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) + M - 1) & ~(M - 1)) + around;
  if (mmap(mine - around, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) { printf("no memory at %p: %s\n", mine, strerror(errno)); return 0; }
  memset(mine, 7, M); char *away = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); CUdeviceptr va = 0;
  if (mremap(mine, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away) != away) { printf("cannot move: %s\n", strerror(errno)); return 0; }
  double t = now(); CUresult r = cuMemAddressReserve(&va, size, M, (CUdeviceptr)mine, 0); t = now() - t; int got = !r && va == (CUdeviceptr)mine; char *q = mremap(away, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, mine);
  printf("hole of %zu MiB at %p, %zu MiB of memory on each side -> %d, %s (%#llx), %.1f us; moved back: %s, intact: %s\n", size >> 20, mine, around >> 20, r, got ? "the address asked for" : "another address", va, t, q == mine ? "yes" : strerror(errno), *mine == 7 && mine[M - 1] == 7 ? "yes" : "NO");
  return got ? mine : 0; }
static const struct { CUdeviceptr at; size_t size, around; } ways[] = {{0, 2ul << 20, 8ul << 20}, {0, 2ul << 20, 0ul << 20}, {0, 64ul << 20, 0ul << 20}, {0, 1024ul << 20, 0ul << 20}, {0, 65536ul << 20, 0ul << 20}, {0x7e0000000000, 2ul << 20, 0ul << 20}, {0x7e0000000000, 4ul << 20, 0ul << 20}, {0x7e0000000000, 8ul << 20, 0ul << 20}, {0x7e0000000000, 16ul << 20, 0ul << 20}, {0x7e0000000000, 32ul << 20, 0ul << 20}, {0x7e0000000000, 34ul << 20, 0ul << 20}, {0x7e0000000000, 64ul << 20, 0ul << 20}, {0x7e0000000000, 66ul << 20, 0ul << 20}, {0x7e0000000000, 96ul << 20, 0ul << 20}, {0x7e0002000000, 32ul << 20, 0ul << 20}, {0x7e0002000000, 64ul << 20, 0ul << 20}, {0x7e0001000000, 32ul << 20, 0ul << 20}, {0x7e0001000000, 64ul << 20, 0ul << 20}, {0x7e0000800000, 64ul << 20, 0ul << 20}, {0x7e0000200000, 64ul << 20, 0ul << 20}, {0x700002000000, 32ul << 20, 0ul << 20}, {0x600000000000, 2ul << 20, 0ul << 20}, {0x600000000000, 32ul << 20, 0ul << 20}, {0x555502000000, 32ul << 20, 0ul << 20}, {0x100000000000, 32ul << 20, 0ul << 20}, {0x10100000000, 32ul << 20, 0ul << 20}, {0x7f0000000000, 32ul << 20, 0ul << 20}, {0x7e0002000000, 32ul << 20, 32ul << 20}, {0x7e0020000000, 512ul << 20, 2ul << 20}};

int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IONBF, 0);
  lib = dlopen("libcuda.so.1", RTLD_NOW); if (!lib) { printf("no libcuda.so.1: %s\n", dlerror()); return 2; }
  L(cuInit); L(cuDeviceGet); L(cuDeviceGetAttribute); L(cuDevicePrimaryCtxRetain); L(cuCtxSetCurrent); L(cuCtxSynchronize); L(cuMemAddressReserve); L(cuMemGetAllocationGranularity);
  L(cuMemCreate); L(cuMemMap); L(cuMemSetAccess); L(cuMemUnmap); L2(cuMemcpyHtoD); L2(cuMemcpyDtoH); L(cuModuleLoadData); L(cuModuleGetFunction); L(cuLaunchKernel); L2(cuMemHostRegister); L(cuMemHostUnregister); L(cuDriverGetVersion);
  F(cuMemAddressFree, CUdeviceptr, size_t) L(cuMemAddressFree);
  size_t n_ways = sizeof ways / sizeof *ways;
  if (argc > 1 && !strcmp(argv[1], "in-use")) { // What becomes of a kernel whose page is unmapped while it stores there?
    if (start()) return 1; AllocProp pr = {.type = 1, .location = {1, 0}}; AccessDesc ac = {{1, 0}, 3}; CUhandle h; CUdeviceptr va = 0;
    CUresult r = cuMemCreate(&h, M, &pr, 0) | cuMemAddressReserve(&va, 16 * M, 0, 0, 0) | cuMemMap(va, M, 0, h, 0) | cuMemSetAccess(va, M, &ac, 1);
    r |= spin_for(va, 200000); usleep(20000); double t = now(); CUresult u = cuMemUnmap(va, M); t = now() - t; double w = now(); CUresult e = cuCtxSynchronize();
    printf("unmap a page that a kernel of 200 ms stores to -> %d after %.0f us; the kernel -> %d, %.0f us later (prepared: %d)\n", u, t, e, now() - w, r);
    CUdeviceptr vb = 0; printf("a call on that context afterwards -> %d\n", cuMemAddressReserve(&vb, 16 * M, 0, 0, 0) | cuMemCreate(&h, M, &pr, 0) | cuMemMap(vb, M, 0, h, 0) | cuMemSetAccess(vb, M, &ac, 1) | cuCtxSynchronize()); return 0; }
  if (argc > 1 && !strcmp(argv[1], "lost")) { // Is anything left of a context after a fault?
    if (start()) return 1; CUresult r = launch(0x610000000000, 1024); int n = 0; CUhandle h; AllocProp pr = {.type = 1, .location = {1, 0}};
    printf("kernel on unmapped memory -> %d; then cuCtxSynchronize -> %d, cuMemCreate -> %d\n", r, cuCtxSynchronize(), cuMemCreate(&h, M, &pr, 0)); (void)n; return 0; }
  if (argc > 1) { size_t i = atoi(argv[1]); if (start()) return 1; return hole(ways[i].at, ways[i].size, ways[i].around) ? 3 : 0; }
  char *mine = 0; size_t best = n_ways; // Each in a process of its own: the driver's memory of earlier tries does not count.
  for (size_t i = 0; i < n_ways; i++) { char cmd[512]; snprintf(cmd, sizeof cmd, "%s %zu", argv[0], i); int st = system(cmd); if (WIFEXITED(st) && WEXITSTATUS(st) == 3 && best == n_ways) best = i; }
  for (int k = 0; k < 2; k++) { char cmd[512]; snprintf(cmd, sizeof cmd, "%s %s", argv[0], k ? "lost" : "in-use"); if (system(cmd)) printf("child failed\n"); }
  { FILE *f = fopen("/proc/self/maps", "r"); char line[512]; if (start()) return 1; printf("mappings without a file once the driver has started:\n"); while (fgets(line, sizeof line, f)) if (!strchr(line, '/')) printf("  %s", line); fclose(f); }
  if (best < n_ways) mine = hole(ways[best].at, ways[best].size, ways[best].around);
  if (!mine) { printf("GPU pages cannot be laid over memory that is there already\n"); return 0; }
  AllocProp pr = {.type = 1, .location = {1, 0}}; AccessDesc ac = {{1, 0}, 3}; CUhandle h; CUresult r; CUdeviceptr va = (CUdeviceptr)mine; uint32_t *w = (uint32_t *)mine;
  if (cuMemCreate(&h, M, &pr, 0)) { printf("cuMemCreate fails\n"); return 1; }
  where(va);
  CUdeviceptr live = 0; char *l = mmap((void *)0x7d0000000000, 64ul << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); *l = 5; r = cuMemAddressReserve(&live, 64ul << 20, M, (CUdeviceptr)l, 0); printf("live memory, aligned to 64 MiB and not moved away -> %d, %#llx\n", r, live);
  r = cuMemMap(va, M, 0, h, 0); printf("cuMemMap under the program's memory -> %d\n", r);
  double t = now(); r = cuMemSetAccess(va, M, &ac, 1); printf("cuMemSetAccess -> %d, %.1f us\n", r, now() - t);
  printf("memory intact: %s\n", w[0] == 0x07070707 && w[M / 4 - 1] == 0x07070707 ? "yes" : "NO");
  static uint32_t buf[2 << 18]; for (size_t i = 0; i < M / 4; i++) buf[i] = i; r = cuMemcpyHtoD(va, buf, M); printf("fill the GPU's page from elsewhere -> %d\n", r);
  r = launch(va, M / 4); printf("kernel at the address of the program's memory -> %d; CPU's memory untouched: %s\n", r, w[9] == 0x07070707 ? "yes" : "NO");
  // The CPU's side stays ours while the GPU's page is mapped.
  printf("mprotect none -> %d, ", mprotect(mine, M, PROT_NONE)); { int fd[2]; if (pipe(fd)) return 1; ssize_t got = write(fd[1], mine, 4); printf("CPU's read there -> %s, ", got < 0 ? strerror(errno) : "works"); } r = launch(va, M / 4); printf("kernel beside it -> %d, mprotect back -> %d\n", r, mprotect(mine, M, PROT_READ | PROT_WRITE));
  { int a = madvise(mine, M, MADV_DONTNEED); printf("madvise dontneed -> %d, CPU reads %u; ", a, w[9]); } r = launch(va, M / 4); printf("kernel beside it -> %d\n", r);
  printf("mmap fixed over it: %s; ", mmap(mine, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == mine ? "yes" : strerror(errno)); r = launch(va, M / 4); printf("kernel beside it -> %d\n", r);
  printf("munmap -> %d; ", munmap(mine, M)); r = launch(va, M / 4); printf("kernel beside it -> %d; ", r); where((CUdeviceptr)mine); mmap(mine, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  r = cuMemcpyDtoH(buf, va, M); printf("copy back -> %d, word 9 is %u after five kernels: %s\n", r, buf[9], buf[9] == 14 ? "right" : "WRONG");
  uffd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY); struct uffdio_api api = {UFFD_API, 0, 0}; int a = uffd < 0 ? -1 : ioctl(uffd, UFFDIO_API, &api);
  struct uffdio_register reg = {{(uint64_t)mine, M}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0}; a = a ? a : ioctl(uffd, UFFDIO_REGISTER, &reg); printf("userfaultfd on the memory under which GPU pages are mapped -> %d %s\n", a, a ? strerror(errno) : "");
  pthread_t th; if (!a) { pthread_create(&th, 0, serve, 0); t = now(); uint32_t got = *(volatile uint32_t *)(mine + 8192); printf("CPU fault served through it: %s, %.1f us\n", got == 4711 ? "yes" : "NO", now() - t); printf("kernel beside it -> %d\n", launch(va, M / 4));
    int m = memfd_create("host", 0); if (ftruncate(m, M)) return 1; char *shared = mmap(mine, M, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m, 0); struct uffdio_register again = {{(uint64_t)mine, M}, UFFDIO_REGISTER_MODE_MISSING, 0}; a = ioctl(uffd, UFFDIO_REGISTER, &again);
    t = now(); got = a ? 0 : *(volatile uint32_t *)(mine + 8192); printf("the same with shared memory over it -> %d, served: %s, %.1f us, kernel beside it -> %d\n", a, shared == mine && got == 4711 ? "yes" : "NO", now() - t, launch(va, M / 4)); }
  // How the GPU's page is taken away: the floor of an eviction.
  t = now(); int n = 200; r = 0; for (int i = 0; i < n; i++) { r |= cuMemUnmap(va, M); r |= cuMemMap(va, M, 0, h, 0) | cuMemSetAccess(va, M, &ac, 1); } printf("unmap, map and allow access, alone -> %d, %.1f us\n", r, (now() - t) / n);
  void *args[] = {&va, &(unsigned){M / 4}}; t = now(); for (int i = 0; i < n; i++) cuLaunchKernel(inc, M / 4 / 256, 1, 1, 256, 1, 1, 0, 0, args, 0); cuCtxSynchronize(); printf("%d kernels of 2 MiB: %.1f us each\n", n, (now() - t) / n);
  CUdeviceptr vb = 0; cuMemAddressReserve(&vb, 32ul << 20, 0, 0, 0); CUhandle h2; cuMemCreate(&h2, M, &pr, 0);
  for (int i = 0; i < 4; i++) { double began = now(); r = spin_for(va, 100000); t = now(); r |= cuMemMap(vb, M, 0, h2, 0); double t1 = now() - t; t = now(); r |= cuMemSetAccess(vb, M, &ac, 1); double t2 = now() - t; t = now(); r |= cuMemUnmap(vb, M); double t3 = now() - t; r |= cuCtxSynchronize();
    printf("beside a kernel of 100 ms: map another page %.1f us, allow access %.1f us, unmap it %.1f us -> %d; the kernel ended after %.1f ms\n", t1, t2, t3, r, (now() - began) / 1e3); }
  t = now(); r = cuMemUnmap(va, M); r |= cuMemAddressFree(va, ways[best].size) << 8; printf("unmap, free the reservation over which the memory lies -> %#x; memory there afterwards:\n", r); where((CUdeviceptr)mine);
  CUdeviceptr huge = 0; t = now(); r = cuMemAddressReserve(&huge, 1ull << 40, M, 0x500000000000ull, 0); printf("reserve 1 TiB -> %d, %#llx, %.1f us\n", r, huge, now() - t);
  return 0;
}
