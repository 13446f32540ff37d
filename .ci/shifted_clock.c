/* A wall clock that is SHIFTED_CLOCK seconds ahead, for every process that preloads this, with the times of files.
 *
 * cc -shared -fPIC -O2 -o shifted_clock.so shifted_clock.c
 *
 * Nothing but the wall clock is touched: libfaketime 0.9.10 also wraps clock_nanosleep, and breaks Python 3.11's
 * time.sleep with it (EINVAL). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    static long seconds, known;
    if (!known) {
        const char *given = getenv("SHIFTED_CLOCK");
        seconds = given ? atol(given) : 0;
        known = 1;
    }
    return seconds;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t clock, struct timespec *at) {
    REAL(clock_gettime);
    int failed = real(clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

#define SHIFTED(status) ((status)->st_atim.tv_sec += shift(), (status)->st_mtim.tv_sec += shift(), \
                         (status)->st_ctim.tv_sec += shift())
#define STAT(name, type, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        int failed = real arguments; \
        if (!failed) SHIFTED(status); \
        return failed; \
    }
STAT(stat, struct stat, (const char *path, struct stat *status), (path, status))
STAT(lstat, struct stat, (const char *path, struct stat *status), (path, status))
STAT(fstat, struct stat, (int file, struct stat *status), (file, status))
STAT(fstatat, struct stat, (int at, const char *path, struct stat *status, int flags), (at, path, status, flags))
STAT(stat64, struct stat64, (const char *path, struct stat64 *status), (path, status))
STAT(lstat64, struct stat64, (const char *path, struct stat64 *status), (path, status))
STAT(fstat64, struct stat64, (int file, struct stat64 *status), (file, status))
STAT(fstatat64, struct stat64, (int at, const char *path, struct stat64 *status, int flags), (at, path, status, flags))

int statx(int at, const char *path, int flags, unsigned int mask, struct statx *status) {
    REAL(statx);
    int failed = real(at, path, flags, mask, status);
    if (!failed) {
        status->stx_atime.tv_sec += shift();
        status->stx_mtime.tv_sec += shift();
        status->stx_ctime.tv_sec += shift();
        status->stx_btime.tv_sec += shift();
    }
    return failed;
}

static const struct timespec *back(const struct timespec given[2], struct timespec set[2]) {
    if (!given) return NULL;
    for (int which = 0; which < 2; which++) {
        set[which] = given[which];
        if (set[which].tv_nsec != UTIME_NOW && set[which].tv_nsec != UTIME_OMIT) set[which].tv_sec -= shift();
    }
    return set;
}

int utimensat(int at, const char *path, const struct timespec given[2], int flags) {
    REAL(utimensat);
    struct timespec set[2];
    return real(at, path, back(given, set), flags);
}

int futimens(int file, const struct timespec given[2]) {
    REAL(futimens);
    struct timespec set[2];
    return real(file, back(given, set));
}
