/* Makes a system call fail once, or lists the places that write. Loaded with LD_PRELOAD; inactive until configured.
 *
 * A place is an operation and a path below a root, with each hexadecimal number replaced by #, so that process ids,
 * times and random names do not matter: "write model/.config.json.#.partial". fault_configure() sets the root, the place
 * that fails (NULL: none), the error number, and the log, to which each place is appended if none fails. The file
 * <log>.done shows that the failure has happened, so that it happens once among all processes that share the log. With a
 * negative error number it happens each time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char READ[] = "read";
static char root[PATH_MAX], place[PATH_MAX + 32], log_file[PATH_MAX];
static int error_number, is_active;

void fault_configure(const char *new_root, const char *new_place, int new_error, const char *new_log) {
    snprintf(root, sizeof root, "%s/", new_root);
    snprintf(place, sizeof place, "%s", new_place ? new_place : "");
    snprintf(log_file, sizeof log_file, "%s", new_log);
    error_number = new_error;
    is_active = 1;
}

__attribute__((constructor)) static void configure_from_environment(void) {
    const char *settings[] = {getenv("FAULT_ROOT"), getenv("FAULT_PLACE"), getenv("FAULT_ERRNO"), getenv("FAULT_LOG")};
    if (settings[0] && settings[3])
        fault_configure(settings[0], settings[1], settings[2] ? atoi(settings[2]) : 0, settings[3]);
}

/* Whether this operation on this path must fail; sets errno. */
static int fails(const char *operation, const char *path) {
    if (!is_active || !path)
        return 0;
    char absolute[2 * PATH_MAX + 2], name[2 * PATH_MAX + 64];
    if (path[0] == '/') {
        snprintf(absolute, sizeof absolute, "%s", path);
    } else {
        char folder[PATH_MAX];
        if (syscall(SYS_getcwd, folder, sizeof folder) < 0)
            return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", folder, path[0] == '.' && path[1] == '/' ? path + 2 : path);
    }
    size_t length = strlen(root);
    if (strncmp(absolute, root, length) || !strncmp(absolute, log_file, strlen(log_file)))
        return 0;
    int end = snprintf(name, sizeof name, "%s ", operation);
    for (const char *c = absolute + length; *c && end < (int)sizeof name - 32;) {
        if (!strncmp(c, "/.tmp", 5)) { /* a random name, of safetensors */
            end += snprintf(name + end, 16, "/.tmp");
            c += 1 + strcspn(c + 1, "/");
            continue;
        }
        size_t run = strspn(c, "0123456789abcdef");
        int is_in_uuid = run == 4 && c[-1] == '-' && c[4] == '-'; /* may have no digit */
        if (strcspn(c, "0123456789") < run || is_in_uuid) {
            name[end++] = '#';
            c += run;
        } else {
            do
                name[end++] = *c++;
            while (run-- > 1 && end < (int)sizeof name - 32);
        }
    }
    name[end] = 0;
    int saved = errno;
    if (!place[0]) {
        if (operation == READ)
            return 0;
        int fd = (int)syscall(SYS_openat, AT_FDCWD, log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        name[end] = '\n';
        if (fd >= 0) {
            syscall(SYS_write, fd, name, (size_t)end + 1);
            syscall(SYS_close, fd);
        }
    } else if (!strcmp(name, place) && error_number < 0) {
        errno = -error_number;
        return 1;
    } else if (!strcmp(name, place)) {
        char done[PATH_MAX + 8];
        snprintf(done, sizeof done, "%s.done", log_file);
        int fd = (int)syscall(SYS_openat, AT_FDCWD, done, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd >= 0) {
            syscall(SYS_close, fd);
            errno = error_number;
            return 1;
        }
    }
    errno = saved;
    return 0;
}

static const char *at(int folder, const char *path, char *buffer) {
    if (!path || path[0] == '/' || folder == AT_FDCWD)
        return path;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    snprintf(buffer + length, PATH_MAX, "/%s", path);
    return buffer;
}

static int fails_on(const char *operation, int fd) {
    if (!is_active)
        return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 1 || path[0] != '/')
        return 0;
    path[length] = 0;
    return fails(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        va_list list;                                                                 \
        va_start(list, flags);                                                        \
        mode_t mode = va_arg(list, mode_t);                                           \
        va_end(list);                                                                 \
        return fails(WRITES(flags) ? "open" : READ, path) ? -1 : REAL(name)(path, flags, mode); \
    }
#define OPENAT(name)                                                                                       \
    int name(int folder, const char *path, int flags, ...) {                                               \
        va_list list;                                                                                      \
        va_start(list, flags);                                                                             \
        mode_t mode = va_arg(list, mode_t);                                                                \
        va_end(list);                                                                                      \
        char buffer[2 * PATH_MAX];                                                                         \
        return fails(WRITES(flags) ? "open" : READ, at(folder, path, buffer)) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
#define FOPEN(name)                                                                     \
    FILE *name(const char *path, const char *mode) {                                    \
        return fails(strpbrk(mode, "wa+") ? "open" : READ, path) ? NULL : REAL(name)(path, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

int creat(const char *path, mode_t mode) { return fails("open", path) ? -1 : REAL(creat)(path, mode); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    char buffer[2 * PATH_MAX];
    return fails("mkdir", at(folder, path, buffer)) ? -1 : REAL(mkdirat)(folder, path, mode);
}
int rename(const char *old, const char *new) { return fails("rename", new) ? -1 : REAL(rename)(old, new); }
int renameat(int a, const char *old, int b, const char *new) {
    char buffer[2 * PATH_MAX];
    return fails("rename", at(b, new, buffer)) ? -1 : REAL(renameat)(a, old, b, new);
}
int renameat2(int a, const char *old, int b, const char *new, unsigned flags) {
    char buffer[2 * PATH_MAX];
    return fails("rename", at(b, new, buffer)) ? -1 : REAL(renameat2)(a, old, b, new, flags);
}
int link(const char *old, const char *new) { return fails("link", new) ? -1 : REAL(link)(old, new); }
int symlink(const char *old, const char *new) { return fails("link", new) ? -1 : REAL(symlink)(old, new); }
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    char buffer[2 * PATH_MAX];
    return fails("unlink", at(folder, path, buffer)) ? -1 : REAL(unlinkat)(folder, path, flags);
}
int rmdir(const char *path) { return fails("unlink", path) ? -1 : REAL(rmdir)(path); }
ssize_t write(int fd, const void *data, size_t size) { return fails_on("write", fd) ? -1 : REAL(write)(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return fails_on("write", fd) ? -1 : REAL(writev)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return fails_on("write", fd) ? -1 : REAL(pwrite)(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return fails_on("write", fd) ? -1 : REAL(pwrite64)(fd, data, size, offset);
}
ssize_t sendfile(int fd, int from, off_t *offset, size_t size) {
    return fails_on("write", fd) ? -1 : REAL(sendfile)(fd, from, offset, size);
}
ssize_t copy_file_range(int from, off64_t *a, int fd, off64_t *b, size_t size, unsigned flags) {
    return fails_on("write", fd) ? -1 : REAL(copy_file_range)(from, a, fd, b, size, flags);
}
int fsync(int fd) { return fails_on("fsync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_on("fsync", fd) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return fails_on("write", fd) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails_on("write", fd) ? -1 : REAL(ftruncate64)(fd, size); }
