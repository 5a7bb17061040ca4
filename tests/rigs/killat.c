/* Runs a program and kills it, or lets system calls fail, where they touch a given directory.
 *
 *   killat N PREFIX LOG PROGRAM [ARGS...]                     SIGKILL on entering the n-th call below PREFIX (0: never)
 *   killat E<errno>:<flag>:<call,call…> PREFIX LOG PROGRAM …  these calls below PREFIX fail while the file <flag> exists
 *
 * Every counted call is a line "<call> <path>" in LOG (with an error: only those made to fail); the last line of a killed run
 * is where it died, and the call named there was not executed. Counting is over all threads together and by path, which
 * strace's `inject` cannot do. Exit: 137 when it killed, otherwise the program's own status. Linux 5.3 or newer; errors on
 * x86-64 and AArch64.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* asm/ptrace headers clash between libcs; this is the kernel's layout of PTRACE_GET_SYSCALL_INFO. */
struct syscall_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t ip, sp, nr, args[6];
    uint32_t ret_data;
};
#ifndef PTRACE_GET_SYSCALL_INFO
#define PTRACE_GET_SYSCALL_INFO 0x420e
#endif

/* fd: argument that is a descriptor, path: argument that is a name (-1: none). */
static const struct call { const char *name; long nr; int fd, path; } calls[] = {
#define FD(x) {#x, SYS_##x, 0, -1}
#define AT(x, p) {#x, SYS_##x, -1, p}
    FD(read), FD(write), FD(pread64), FD(pwrite64), FD(readv), FD(writev), FD(preadv), FD(pwritev), FD(pwritev2), FD(preadv2), FD(close),
    FD(fsync), FD(fdatasync), FD(sync_file_range), FD(ftruncate), FD(fallocate), FD(fchmod), FD(fchown), FD(fcntl), FD(flock), FD(lseek),
    FD(getdents64), FD(sendfile), FD(fstat),
    AT(openat, 1), AT(unlinkat, 1), AT(mkdirat, 1), AT(renameat2, 3), AT(linkat, 3), AT(fchmodat, 1), AT(fchownat, 1), AT(utimensat, 1),
    AT(statx, 1), AT(truncate, 0), AT(faccessat, 1),
    {"copy_file_range", SYS_copy_file_range, 2, -1}, {"mmap", SYS_mmap, 4, -1},
#ifdef SYS_open
    AT(open, 0), AT(unlink, 0), AT(rename, 1), AT(mkdir, 0), AT(rmdir, 0), AT(link, 1), AT(symlink, 1), AT(chmod, 0), AT(chown, 0), AT(stat, 0),
    AT(lstat, 0), AT(access, 0),
#endif
#ifdef SYS_newfstatat
    AT(newfstatat, 1),
#endif
#ifdef SYS_renameat
    AT(renameat, 3),
#endif
};
enum { CALLS = sizeof calls / sizeof *calls };

static void die(const char *what) { perror(what); exit(126); }

static void install_filter(void) {
    struct sock_filter code[CALLS + 3];
    int n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i].nr, CALLS - i, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog program = {.len = (unsigned short)n, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) die("seccomp");
}

/* The file a stopped thread is about to touch, or "" when the call names none. */
static void path_of(pid_t tid, const struct call *call, const struct syscall_info *info, char *out, size_t size) {
    char link[64];
    out[0] = 0;
    if (call->path >= 0) {
        struct iovec here = {out, size - 1}, there = {(void *)(uintptr_t)info->args[call->path], size - 1};
        ssize_t n = process_vm_readv(tid, &here, 1, &there, 1, 0);
        for (size_t less = 256; n <= 0 && less; less /= 2) { /* the name may end just before an unmapped page */
            here.iov_len = there.iov_len = less;
            n = process_vm_readv(tid, &here, 1, &there, 1, 0);
        }
        out[n > 0 ? n : 0] = 0;
        if (out[0] == '/' || call->path == 0) return;
        /* relative to a directory descriptor: prepend it */
        char name[2048], dir[2048];
        snprintf(name, sizeof name, "%s", out);
        int fd = (int)info->args[call->path - 1];
        if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/%d/cwd", tid);
        else snprintf(link, sizeof link, "/proc/%d/fd/%d", tid, fd);
        ssize_t m = readlink(link, dir, sizeof dir - 1);
        dir[m > 0 ? m : 0] = 0;
        snprintf(out, size, "%s/%s", dir, name);
        return;
    }
    snprintf(link, sizeof link, "/proc/%d/fd/%d", tid, (int)info->args[call->fd]);
    ssize_t n = readlink(link, out, size - 1);
    out[n > 0 ? n : 0] = 0;
}

/* Lets the call a thread is about to make fail without being made. */
static void refuse(pid_t tid, int error) {
#if defined(__x86_64__)
    ptrace(PTRACE_POKEUSER, tid, offsetof(struct user_regs_struct, orig_rax), -1L);
    ptrace(PTRACE_POKEUSER, tid, offsetof(struct user_regs_struct, rax), (long)-error);
#elif defined(__aarch64__)
    int none = -1;
    struct iovec call = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, tid, 0x404 /* NT_ARM_SYSTEM_CALL */, &call);
    struct user_regs_struct registers;
    struct iovec all = {&registers, sizeof registers};
    ptrace(PTRACE_GETREGSET, tid, 1 /* NT_PRSTATUS */, &all);
    registers.regs[0] = -error;
    ptrace(PTRACE_SETREGSET, tid, 1, &all);
#else
    (void)tid; (void)error;
    fprintf(stderr, "killat: no error injection on this machine\n");
    exit(125);
#endif
}

/* Is `name` one of the comma separated `list`? */
static int listed(const char *name, const char *list) {
    size_t n = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, name, n) && (at[n] == 0 || at[n] == ',')) return 1;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 5) return fprintf(stderr, "usage: killat N PREFIX LOG PROGRAM [ARGS...]\n"), 125;
    long when = atol(argv[1]), count = 0;
    int error = 0;
    const char *flag = NULL, *which = NULL;
    if (argv[1][0] == 'E') {
        error = atoi(argv[1] + 1);
        flag = strtok(strchr(argv[1], ':'), ":");
        which = strtok(NULL, ":");
        if (!error || !flag || !which) return fprintf(stderr, "killat: bad error specification\n"), 125;
    }
    const char *prefix = argv[2];
    FILE *log = fopen(argv[3], "we");
    if (!log) die(argv[3]);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        install_filter();
        execvp(argv[4], argv + 4);
        die(argv[4]);
    }
    int status;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) die("wait");
    long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options)) die("ptrace");
    ptrace(PTRACE_CONT, child, 0, 0);
    static char path[8192];
    static char seen[1 << 22];
    signal(SIGTERM, SIG_IGN); /* a signal to the group is for the program */
    for (;;) {
        pid_t tid = waitpid(-1, &status, __WALL);
        if (tid < 0) {
            if (errno == EINTR) continue;
            return 0;
        }
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (tid != child) continue;
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        int stop = WSTOPSIG(status), event = status >> 16, deliver = 0;
        if (event == PTRACE_EVENT_SECCOMP) {
            struct syscall_info info = {0};
            ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof info, &info);
            for (int i = 0; i < CALLS; i++) {
                if (calls[i].nr != (long)info.nr) continue;
                path_of(tid, &calls[i], &info, path, sizeof path);
                if (strncmp(path, prefix, strlen(prefix)) != 0) break;
                if (error) {
                    if (!listed(calls[i].name, which) || access(flag, F_OK) != 0) break;
                    refuse(tid, error);
                }
                fprintf(log, "%s %s\n", calls[i].name, path);
                fflush(log);
                if (++count == when && !error) {
                    kill(child, SIGKILL);
                    while (waitpid(-1, &status, __WALL) > 0 || errno == EINTR) {}
                    return 137;
                }
                break;
            }
        } else if (event == 0 && stop == SIGSTOP && !seen[tid & ((1 << 22) - 1)]) {
            seen[tid & ((1 << 22) - 1)] = 1; /* how a new thread begins */
        } else if (event == 0) {
            deliver = stop;
        }
        ptrace(PTRACE_CONT, tid, 0, deliver);
    }
}
