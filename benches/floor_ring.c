/* floor.c with io_uring: one system call in a turn submits all writes and waits for what has arrived.
 *
 *     cc -O2 -o target/floor_ring benches/floor_ring.c -luring        (liburing 2.3, Linux 6.1 or later)
 *
 * Used as floor.c is. Reads are multishot into buffers that are handed to the kernel once; completions run when the thread
 * asks for them (DEFER_TASKRUN).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <liburing.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUEUE 65536
#define SMALL 16384
#define SMALLS 512
#define BIG (1 << 16)
#define BIGS 64

enum { ACCEPT, CLIENT, REDIS, TO_CLIENT, TO_REDIS };
#define TAG(kind, fd) ((unsigned long long)(kind) << 32 | (unsigned)(fd))

static struct io_uring ring;
static struct io_uring_buf_ring *small, *big;
static char smalls[SMALLS][SMALL], bigs[BIGS][BIG];
static struct waiting { int client, requests; } queue[QUEUE];
static unsigned first, last;
/* What goes to Redis: one is filled while the other is written. To clients: a ring that is never full. */
static char output[2][1 << 20], outgoing[1 << 24];
static int filled[2], filling, writing, rest, request, reply, redis, listener;
static unsigned at_out;
static char replies[1 << 18];

static struct io_uring_sqe *get(void) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (!sqe) { io_uring_submit(&ring); sqe = io_uring_get_sqe(&ring); }
    return sqe;
}

static void receive(int kind, int fd) {
    struct io_uring_sqe *sqe = get();
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = kind == REDIS;
    io_uring_sqe_set_data64(sqe, TAG(kind, fd));
}

static void send_to(int kind, int fd, const char *bytes, int count) {
    struct io_uring_sqe *sqe = get();
    io_uring_prep_send(sqe, fd, bytes, count, MSG_WAITALL);
    io_uring_sqe_set_data64(sqe, TAG(kind, fd));
}

static void from_client(int fd, const char *input, int n) {
    static const char question[] = "*3\r\n$6\r\nCONFIG";
    if (memcmp(input, question, sizeof question - 1) == 0) {
        for (const char *at = input; at < input + n; at++)
            if (memcmp(at, question, sizeof question - 1) == 0) send_to(TO_CLIENT, fd, "*0\r\n", 4);
        return;
    }
    memcpy(output[filling] + filled[filling], input, n);
    filled[filling] += n;
    queue[last++ % QUEUE] = (struct waiting){fd, n / request};
}

static void from_redis(const char *bytes, int n) {
    int at = 0;
    memcpy(replies + rest, bytes, n);
    n += rest;
    while (first != last && n - at >= reply) {
        struct waiting *one = &queue[first % QUEUE];
        int whole = (n - at) / reply;
        if (whole > one->requests) whole = one->requests;
        if (at_out + whole * reply > sizeof outgoing) at_out = 0;
        memcpy(outgoing + at_out, replies + at, whole * reply);
        send_to(TO_CLIENT, one->client, outgoing + at_out, whole * reply);
        at_out += whole * reply;
        at += whole * reply;
        if ((one->requests -= whole) == 0) first++;
    }
    rest = n - at;
    memmove(replies, replies + at, rest);
}

static struct io_uring_buf_ring *provide(char *base, int size, int count, int group) {
    struct io_uring_buf_ring *bufs;
    if (posix_memalign((void **)&bufs, 4096, count * sizeof(struct io_uring_buf))) exit(1);
    struct io_uring_buf_reg reg = {.ring_addr = (unsigned long)bufs, .ring_entries = count, .bgid = group};
    if (io_uring_register_buf_ring(&ring, &reg, 0)) { perror("buf_ring"); exit(1); }
    io_uring_buf_ring_init(bufs);
    for (int i = 0; i < count; i++)
        io_uring_buf_ring_add(bufs, base + (long)i * size, size, i, io_uring_buf_ring_mask(count), i);
    io_uring_buf_ring_advance(bufs, count);
    return bufs;
}

int main(int count, char **words) {
    if (count != 5) { fprintf(stderr, "usage: floor_ring LISTEN_PORT REDIS_PORT REQUEST_BYTES REPLY_BYTES\n"); return 2; }
    request = atoi(words[3]);
    reply = atoi(words[4]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    listener = socket(AF_INET, SOCK_STREAM, 0), redis = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    address.sin_port = htons(atoi(words[1]));
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 511)) { perror("listen"); return 1; }
    address.sin_port = htons(atoi(words[2]));
    if (connect(redis, (void *)&address, sizeof address)) { perror("connect"); return 1; }
    setsockopt(redis, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE, .cq_entries = 8192};
    int error = io_uring_queue_init_params(2048, &ring, &params);
    if (error) { fprintf(stderr, "io_uring: %s\n", strerror(-error)); return 1; }
    small = provide(&smalls[0][0], SMALL, SMALLS, 0);
    big = provide(&bigs[0][0], BIG, BIGS, 1);
    struct io_uring_sqe *sqe = get();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, 0);
    io_uring_sqe_set_data64(sqe, TAG(ACCEPT, listener));
    receive(REDIS, redis);
    for (;;) {
        if (!writing && filled[filling]) {
            send_to(TO_REDIS, redis, output[filling], filled[filling]);
            writing = 1;
            filling = !filling;
            filled[filling] = 0;
        }
        io_uring_submit_and_wait(&ring, 1);
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&ring, head, cqe) {
            seen++;
            int kind = cqe->user_data >> 32, fd = (int)cqe->user_data, n = cqe->res;
            if (kind == ACCEPT) {
                if (n >= 0) { setsockopt(n, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); receive(CLIENT, n); }
            } else if (kind == CLIENT || kind == REDIS) {
                if (n > 0) {
                    int id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
                    if (kind == CLIENT) {
                        from_client(fd, smalls[id], n);
                        io_uring_buf_ring_add(small, smalls[id], SMALL, id, io_uring_buf_ring_mask(SMALLS), 0);
                        io_uring_buf_ring_advance(small, 1);
                    } else {
                        from_redis(bigs[id], n);
                        io_uring_buf_ring_add(big, bigs[id], BIG, id, io_uring_buf_ring_mask(BIGS), 0);
                        io_uring_buf_ring_advance(big, 1);
                    }
                    if (!(cqe->flags & IORING_CQE_F_MORE)) receive(kind, fd);
                } else if (n == -ENOBUFS) receive(kind, fd);
                else if (kind == REDIS) return 0;
                else close(fd);
            } else if (n < 0) { fprintf(stderr, "send: %s\n", strerror(-n)); if (kind == TO_REDIS) return 1; }
            else if (kind == TO_REDIS) writing = 0;
        }
        io_uring_cq_advance(&ring, seen);
    }
}
