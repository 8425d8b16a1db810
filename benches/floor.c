/* The least that a multiplexing relay does: what the kernel alone costs.
 *
 *     cc -O2 -o target/floor benches/floor.c
 *     target/floor LISTEN_PORT REDIS_PORT REQUEST_BYTES REPLY_BYTES
 *     redis-benchmark -p LISTEN_PORT -t get -d 100 -r 100000 -P 16        (36 and 108 bytes)
 *     redis-benchmark -p LISTEN_PORT -t set -d 100 -r 100000 -P 16        (144 and 5 bytes)
 *
 * One read for each client that is readable, one write to Redis in a turn, one write to each client that has replies. It
 * knows no protocol: requests and replies have fixed lengths, and every key must exist. Its user and system time are in
 * /proc/PID/stat.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 1024
#define QUEUE 65536

static struct waiting { int client, requests; } queue[QUEUE];
static unsigned first, last;
static char input[1 << 18], output[1 << 20], replies[1 << 18];
static int unsent, rest, request, reply, poller;

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void tune(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void from_client(int fd) {
    static const char question[] = "*3\r\n$6\r\nCONFIG";
    int n = read(fd, input, sizeof input);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { close(fd); return; }
    if (memcmp(input, question, sizeof question - 1) == 0) {
        /* redis-benchmark asks for two settings before it begins. */
        for (char *at = input; at < input + n; at++)
            if (memcmp(at, question, sizeof question - 1) == 0 && write(fd, "*0\r\n", 4) < 0) return;
        return;
    }
    memcpy(output + unsent, input, n);
    unsent += n;
    queue[last++ % QUEUE] = (struct waiting){fd, n / request};
}

static void from_redis(int fd) {
    int n = read(fd, replies + rest, sizeof replies - rest), at = 0;
    if (n <= 0) exit(0);
    n += rest;
    while (first != last && n - at >= reply) {
        struct waiting *one = &queue[first % QUEUE];
        int whole = (n - at) / reply;
        if (whole > one->requests) whole = one->requests;
        if (write(one->client, replies + at, whole * reply) < 0) exit(1);
        at += whole * reply;
        if ((one->requests -= whole) == 0) first++;
    }
    rest = n - at;
    memmove(replies, replies + at, rest);
}

int main(int count, char **words) {
    if (count != 5) { fprintf(stderr, "usage: floor LISTEN_PORT REDIS_PORT REQUEST_BYTES REPLY_BYTES\n"); return 2; }
    request = atoi(words[3]);
    reply = atoi(words[4]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), redis = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    address.sin_port = htons(atoi(words[1]));
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 511)) { perror("listen"); return 1; }
    address.sin_port = htons(atoi(words[2]));
    if (connect(redis, (void *)&address, sizeof address)) { perror("connect"); return 1; }
    tune(redis);
    poller = epoll_create1(0);
    watch(listener);
    watch(redis);
    for (struct epoll_event events[EVENTS];;) {
        int n = epoll_wait(poller, events, EVENTS, -1), answered = 0, client;
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == redis) answered = 1;
            else if (fd != listener) from_client(fd);
            else while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) { tune(client); watch(client); }
        }
        for (int sent = 0; sent < unsent;) {
            int m = write(redis, output + sent, unsent - sent);
            if (m < 0) return 1;
            sent += m;
        }
        unsent = 0;
        if (answered) from_redis(redis);
    }
}
