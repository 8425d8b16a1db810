/* A disk that a test watches: the folder that RESCIND_TEST_DISK names. Each fdatasync is counted in the files `begun` and
 * `done` there; it waits as long as there is a file `held`, and fails if there is one called `broken`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int at(char *path, size_t size, const char *name) {
    const char *folder = getenv("RESCIND_TEST_DISK");
    return folder != NULL && snprintf(path, size, "%s/%s", folder, name) < (int)size;
}

static int is_there(const char *name) {
    char path[512];
    return at(path, sizeof path, name) && access(path, F_OK) == 0;
}

static void count(const char *name) {
    char path[512];
    int fd = at(path, sizeof path, name) ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || write(fd, "x", 1) != 1) {
        abort();
    }
    close(fd);
}

int fdatasync(int fd) {
    count("begun");
    while (is_there("held")) {
        usleep(1000);
    }
    if (is_there("broken")) {
        errno = EIO;
        return -1;
    }
    int result = (int)syscall(SYS_fdatasync, fd);
    count("done");
    return result;
}
