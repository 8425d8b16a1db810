/* A disk whose syncs take a millisecond longer, as many a network disk's do.
 *
 *     cc -O2 -shared -fPIC -o slow_disk.so slow_disk.c
 *     LD_PRELOAD=$PWD/slow_disk.so rescind …
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int fdatasync(int fd) {
    struct timespec left = {0, 1000 * 1000};
    while (nanosleep(&left, &left) != 0) {
    }
    return (int)syscall(SYS_fdatasync, fd);
}
