/* A program that knows nothing of the shim: each mode is one way in which real programs call connect(2).
 * Prints what it saw, one fact a line; the Rust test beside it judges. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <grp.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* "@name" is an abstract name. */
static socklen_t fill(struct sockaddr_un *a, const char *path)
{
    size_t n = strlen(path);
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    if (n > sizeof a->sun_path)
        n = sizeof a->sun_path;
    memcpy(a->sun_path, path, n);
    if (path[0] == '@') {
        a->sun_path[0] = 0;
        return offsetof(struct sockaddr_un, sun_path) + n;
    }
    return sizeof *a;
}

static int try_fd(int fd, const char *path)
{
    struct sockaddr_un a;
    socklen_t len = fill(&a, path);
    return connect(fd, (struct sockaddr *)&a, len) == 0 ? 0 : errno;
}

/* One datagram of two parts, in each way that names its addressee. */
static long post(int fd, const char *how, const char *text, const char *path)
{
    struct sockaddr_un a;
    socklen_t len = fill(&a, path);
    size_t n = strlen(text);
    if (!strcmp(how, "connect"))
        return send(fd, text, n, 0);
    if (!strcmp(how, "sendto"))
        return sendto(fd, text, n, 0, (struct sockaddr *)&a, len);
    struct iovec part[2] = {{(char *)text, n / 2}, {(char *)text + n / 2, n - n / 2}};
    struct mmsghdr m = {.msg_hdr = {.msg_name = &a, .msg_namelen = len, .msg_iov = part, .msg_iovlen = 2}};
    if (!strcmp(how, "sendmsg"))
        return sendmsg(fd, &m.msg_hdr, 0);
    int sent = sendmmsg(fd, &m, 1, 0);
    return sent == 1 ? (long)m.msg_len : sent;
}

static int g_post; /* a datagram instead of a connect */

static int try(const char *path, int type)
{
    int fd = socket(AF_UNIX, g_post ? SOCK_DGRAM : type, 0);
    int e = fd < 0 ? -errno : g_post ? (post(fd, "sendto", "one", path) == 3 ? 0 : errno) : try_fd(fd, path);
    if (fd >= 0)
        close(fd);
    return e;
}

static const char *name(int e) { return e ? strerrorname_np(e) : "OK"; }

static void say_address(const char *what, int fd, int (*get)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_un a;
    socklen_t len = sizeof a;
    if (get(fd, (struct sockaddr *)&a, &len) < 0) {
        printf("%s %s\n", what, strerrorname_np(errno));
        return;
    }
    int n = (int)len - (int)offsetof(struct sockaddr_un, sun_path);
    if (n > 0 && a.sun_path[0] == 0)
        printf("%s @%.*s\n", what, n - 1, a.sun_path + 1);
    else
        printf("%s %.*s\n", what, n > 0 ? n : 0, a.sun_path);
}

static void bind_to(int fd, const char *path)
{
    struct sockaddr_un a;
    socklen_t len = fill(&a, path);
    if (!strcmp(path, "!")) /* the kernel's choice */
        len = sizeof a.sun_family;
    if (bind(fd, (struct sockaddr *)&a, len))
        perror(path);
}

static void say_answer(int fd)
{
    struct sockaddr_un a;
    socklen_t len = sizeof a;
    char got[128];
    struct timeval patience = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    long n = recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&a, &len);
    if (n < 0)
        printf("no answer: %s\n", strerrorname_np(errno));
    else
        printf("%.*s from %s\n", (int)n, got, a.sun_path);
}

/* COUNT datagrams, an answer to each if the socket has a name, and the same again for each line of stdin. */
static void posts(const char *path, const char *how, const char *own, int count)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0), bound = strcmp(own, "-"), c = 0;
    if (!strncmp(own, "moved ", 6)) { /* its path leads to another socket meanwhile */
        char aside[128];
        bind_to(fd, own += 6);
        snprintf(aside, sizeof aside, "%s.aside", own);
        rename(own, aside);
        bind_to(socket(AF_UNIX, SOCK_DGRAM, 0), own);
    } else if (bound) {
        bind_to(fd, own);
    }
    if (!strcmp(how, "connect")) {
        int e = try_fd(fd, path);
        if (e) {
            printf("%s\n", name(e));
            return;
        }
        say_address("peer", fd, getpeername);
    }
    do {
        for (int i = 0; i < count; i++) {
            char text[32];
            snprintf(text, sizeof text, "msg %d;", i);
            errno = 77;
            long n = post(fd, how, text, path);
            if (n < 0)
                printf("%s\n", name(errno));
            else if (n != (long)strlen(text) || errno != 77)
                printf("sent %ld errno %d\n", n, errno);
            else if (bound)
                say_answer(fd);
        }
        printf("done\n");
        while ((c = getchar()) != '\n' && c != EOF)
            ;
    } while (c != EOF);
}

static int type_of(const char *word)
{
    if (!strcmp(word, "seqpacket"))
        return SOCK_SEQPACKET;
    return !strcmp(word, "dgram") ? SOCK_DGRAM : SOCK_STREAM;
}

/* Connects, shows the socket, and says hello to an echo server. */
static void whole(const char *path, int type, int flags)
{
    int fd = socket(AF_UNIX, type | flags, 0);
    int before = fcntl(fd, F_GETFL), ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLOUT | EPOLLIN | EPOLLET, .data.u32 = 7};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    errno = 77;
    int e = try_fd(fd, path);
    printf("connect %s\n", name(e));
    if (e)
        return;
    printf("errno %d\n", errno);
    printf("flags %s\n", fcntl(fd, F_GETFL) == before ? "same" : "changed");
    say_address("peer", fd, getpeername);
    say_address("own", fd, getsockname);
    send(fd, "hello", 5, 0);
    if (type == SOCK_DGRAM)
        return;
    struct pollfd p = {fd, POLLIN, 0};
    poll(&p, 1, 5000);
    char got[16] = "";
    long n = recv(fd, got, sizeof got - 1, 0);
    printf("echo %ld %s\n", n, got);
    send(fd, "again", 5, 0);
    ev.data.u32 = 0;
    do { /* the edge of the answer comes through the registration made before the connect */
        if (epoll_wait(ep, &ev, 1, 5000) < 1) {
            printf("epoll nothing\n");
            return;
        }
    } while (!(ev.events & EPOLLIN));
    printf("epoll %u\n", ev.data.u32);
    recv(fd, got, sizeof got - 1, 0);
    shutdown(fd, SHUT_WR);
    fcntl(fd, F_SETFL, 0);
    printf("eof %zd\n", recv(fd, got, sizeof got, 0));
}

static const char *g_path;
static volatile int g_result = -1;
static void on_signal(int s) { (void)s; int e = errno; g_result = try(g_path, SOCK_STREAM); errno = e; }
static void nothing(int s) { (void)s; }

static int g_count, g_good;
static void *worker(void *unused)
{
    (void)unused;
    for (int i = 0; i < g_count; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        int e = try_fd(fd, g_path);
        char byte = (char)i, back = 0;
        if (!e && send(fd, &byte, 1, 0) == 1 && recv(fd, &back, 1, 0) == 1 && back == byte)
            __atomic_add_fetch(&g_good, 1, __ATOMIC_RELAXED);
        else
            fprintf(stderr, "connect %d: %s\n", i, name(e));
        close(fd);
    }
    return NULL;
}

static void threads(int n, int each)
{
    pthread_t all[256];
    g_count = each;
    for (int i = 0; i < n; i++)
        pthread_create(&all[i], NULL, worker, NULL);
    for (int i = 0; i < n; i++)
        pthread_join(all[i], NULL);
    printf("good %d\n", g_good);
}

static void *blocked(void *unused) { (void)unused; g_result = try(g_path, SOCK_STREAM); return NULL; }

static void *bencher(void *unused)
{
    (void)unused;
    struct sockaddr_un a;
    socklen_t len = fill(&a, g_path);
    for (int i = 0; i < g_count; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&a, len) < 0) {
            perror("connect");
            exit(1);
        }
        close(fd);
    }
    return NULL;
}

static void bench(int n, int each)
{
    struct timespec t0, t1;
    pthread_t all[64];
    g_count = each;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < n; i++)
        pthread_create(&all[i], NULL, bencher, NULL);
    for (int i = 0; i < n; i++)
        pthread_join(all[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (t1.tv_sec - t0.tv_sec) + (t1.tv_nsec - t0.tv_nsec) / 1e9;
    printf("rate %.0f\nus %.1f\n", n * each / s, s * 1e6 / (n * each));
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 3)
        return 2;
    const char *mode = argv[1], *path = argv[2], *arg = argc > 3 ? argv[3] : "";
    g_path = path;
    g_post = argc > 3 && !strcmp(argv[argc - 1], "post");
    if (!strcmp(mode, "posts")) {
        posts(path, arg, argv[4], atoi(argv[5]));
    } else if (!strcmp(mode, "whole")) {
        whole(path, type_of(arg), argc > 4 ? SOCK_NONBLOCK : 0);
    } else if (!strcmp(mode, "errno")) {
        printf("%s\n", name(try(path, type_of(arg))));
    } else if (!strcmp(mode, "nonblock")) {
        printf("%s\n", name(try(path, SOCK_STREAM | SOCK_NONBLOCK)));
    } else if (!strcmp(mode, "retry")) { /* libvirtd retries on one fd */
        int fd = socket(AF_UNIX, SOCK_STREAM, 0), c;
        printf("%s\n", name(try_fd(fd, path)));
        while ((c = getchar()) != '\n' && c != EOF)
            ;
        printf("%s\n", name(try_fd(fd, path)));
        say_address("peer", fd, getpeername);
    } else if (!strcmp(mode, "chdir")) {
        if (chdir(arg))
            return 1;
        whole(path, SOCK_STREAM, 0);
    } else if (!strcmp(mode, "chroot")) {
        if (chroot(arg) || chdir("/"))
            return 1;
        if (g_post)
            printf("%s\n", name(try(path, SOCK_DGRAM)));
        else
            whole(path, SOCK_STREAM, 0);
    } else if (!strcmp(mode, "as")) { /* after giving root up */
        int id = atoi(arg);
        gid_t extra = (gid_t)id + 1;
        if (setgroups(1, &extra) || setresgid(id, id, id) || setresuid(id, id, id))
            return 1;
        if (g_post) {
            printf("%s\n", name(try(path, SOCK_DGRAM)));
            return 0;
        }
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        printf("%s\n", name(try_fd(fd, path)));
        char got[128] = "";
        if (recv(fd, got, sizeof got - 1, 0) > 0)
            printf("%s", got);
    } else if (!strcmp(mode, "fork")) {
        int status;
        pid_t pid = fork();
        if (!pid)
            _exit(try(path, SOCK_STREAM));
        waitpid(pid, &status, 0);
        printf("fork %s\n", name(WEXITSTATUS(status)));
        pid = vfork();
        if (!pid)
            _exit(try(path, SOCK_STREAM));
        waitpid(pid, &status, 0);
        printf("vfork %s\n", name(WEXITSTATUS(status)));
        char *again[] = {argv[0], "errno", (char *)path, g_post ? "post" : NULL, NULL};
        posix_spawn(&pid, "/proc/self/exe", NULL, NULL, again, environ);
        waitpid(pid, &status, 0);
        printf("parent %s\n", name(try(path, SOCK_STREAM)));
    } else if (!strcmp(mode, "threads")) {
        threads(atoi(arg), argc > 4 ? atoi(argv[4]) : 1);
    } else if (!strcmp(mode, "bench")) {
        bench(atoi(arg), atoi(argv[4]));
    } else if (!strcmp(mode, "signal")) { /* in a handler, on the smallest stack there is, amid malloc */
        size_t size = (size_t)sysconf(_SC_MINSIGSTKSZ) + 2048;
        char *guard = mmap(NULL, 4096 + 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(guard, 4096, PROT_NONE);
        stack_t st = {.ss_sp = guard + 4096, .ss_size = size};
        struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART};
        if (sigaltstack(&st, NULL))
            return 1;
        sigaction(SIGALRM, &sa, NULL);
        struct itimerval it = {{0, 2000}, {0, 2000}};
        setitimer(ITIMER_REAL, &it, NULL);
        time_t end = time(NULL) + 2;
        int seen = 0, bad = 0;
        while (time(NULL) < end) {
            free(malloc(100 + seen));
            if (g_result >= 0) {
                seen++;
                bad += g_result != 0;
                g_result = -1;
            }
        }
        printf("signals %s bad %d\n", seen > 100 ? "many" : "few", bad);
    } else if (!strcmp(mode, "eintr")) { /* a timer that fires while the verdict is on its way */
        struct sigaction sa = {.sa_handler = nothing};
        sigaction(SIGALRM, &sa, NULL);
        struct itimerval it = {{0, 5000}, {0, 5000}};
        setitimer(ITIMER_REAL, &it, NULL);
        printf("%s\n", name(try(path, SOCK_STREAM)));
    } else if (!strcmp(mode, "fdlimit")) { /* no fd left for the shim */
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct rlimit none = {fd + 1, fd + 1};
        setrlimit(RLIMIT_NOFILE, &none);
        printf("%s\n", name(try_fd(fd, path)));
    } else if (!strcmp(mode, "closed")) { /* a daemon that closed all it had */
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        int out = dup(1);
        close(0);
        close(2);
        dprintf(out, "%s\n", name(try(path, SOCK_STREAM)));
        dprintf(out, "%s\n", name(try(path, SOCK_STREAM)));
    } else if (!strcmp(mode, "cancel")) { /* a thread that is cancelled while it connects */
        pthread_t t;
        void *how;
        pthread_create(&t, NULL, blocked, NULL);
        usleep(200000);
        pthread_cancel(t);
        pthread_join(t, &how);
        printf("%s\n", how == PTHREAD_CANCELED ? "cancelled" : "ended");
        printf("%s\n", name(try(arg, SOCK_STREAM)));
    } else if (!strcmp(mode, "wild")) { /* what the kernel refuses stays refused by the kernel */
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        printf("%s\n", connect(fd, (void *)8, 110) ? name(errno) : "OK");
        printf("%s\n", connect(-1, NULL, 0) ? name(errno) : "OK");
        struct sockaddr_un a;
        fill(&a, path);
        printf("%s\n", connect(fd, (void *)&a, 2) ? name(errno) : "OK");
        printf("%s\n", connect(fd, (void *)&a, 200) ? name(errno) : "OK");
        printf("%s\n", connect(0, (void *)&a, sizeof a) ? name(errno) : "OK");
    } else {
        return 2;
    }
    return 0;
}
