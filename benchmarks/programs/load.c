/* Tight loops over files for the benchmark: each times itself and prints the seconds it took.
 *
 *   load stat LIST        fstatat of every path of the file LIST, which are relative to the current directory
 *   load list DIR         readdir of the whole directory
 *   load randread FILE N  N reads of 4 KiB at places all over the file
 *   load randwrite FILE N the same with writes
 *   load fsync FILE N     N times: append 4 KiB, fsync
 *   load mmapread FILE    one byte of every page of a shared mapping
 *   load mmapwrite FILE   the same, written, then msync
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096 };

static char block[BLOCK];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static uint64_t next_random(void)
{
    static uint64_t state = 88172645463325252ull; /* xorshift64: the same places in every run */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static int must_open(const char *path, int flags)
{
    int fd = open(path, flags, 0644);
    if (fd < 0)
        err(1, "%s", path);
    return fd;
}

static off_t size_of(int fd)
{
    struct stat facts;
    if (fstat(fd, &facts))
        err(1, "fstat");
    return facts.st_size;
}

static double stat_all(const char *list)
{
    FILE *file = fopen(list, "r");
    char *text = NULL;
    size_t size = 0;
    if (!file || getdelim(&text, &size, '\0', file) < 0)
        err(1, "%s", list);
    double start = now();
    for (char *path = strtok(text, "\n"); path; path = strtok(NULL, "\n")) {
        struct stat facts;
        if (fstatat(AT_FDCWD, path, &facts, AT_SYMLINK_NOFOLLOW))
            err(1, "%s", path);
    }
    return now() - start;
}

static double list(const char *path)
{
    double start = now();
    DIR *directory = opendir(path);
    if (!directory)
        err(1, "%s", path);
    while (readdir(directory))
        ;
    closedir(directory);
    return now() - start;
}

static double random_access(const char *path, long count, int writing)
{
    int fd = must_open(path, writing ? O_RDWR : O_RDONLY);
    off_t blocks = size_of(fd) / BLOCK;
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    double start = now();
    while (count--) {
        off_t where = next_random() % blocks * BLOCK;
        if ((writing ? pwrite(fd, block, BLOCK, where) : pread(fd, block, BLOCK, where)) != BLOCK)
            err(1, "%s", path);
    }
    close(fd); /* a write-back cache has to hand its pages over now */
    return now() - start;
}

static double append_and_sync(const char *path, long count)
{
    int fd = must_open(path, O_WRONLY | O_CREAT | O_APPEND);
    double start = now();
    while (count--)
        if (write(fd, block, BLOCK) != BLOCK || fsync(fd))
            err(1, "%s", path);
    return now() - start;
}

static double mapped(const char *path, int writing)
{
    double start = now();
    int fd = must_open(path, writing ? O_RDWR : O_RDONLY);
    off_t size = size_of(fd);
    int access = writing ? PROT_READ | PROT_WRITE : PROT_READ;
    volatile char *bytes = mmap(NULL, size, access, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        err(1, "%s", path);
    for (off_t place = 0; place < size; place += BLOCK) {
        if (writing)
            bytes[place] = 1;
        else
            block[0] += bytes[place];
    }
    if (writing && msync((void *)bytes, size, MS_SYNC))
        err(1, "msync");
    return now() - start;
}

static double run(const char *what, const char *path, long count)
{
    if (!strcmp(what, "stat"))
        return stat_all(path);
    if (!strcmp(what, "list"))
        return list(path);
    if (!strcmp(what, "randread") || !strcmp(what, "randwrite"))
        return random_access(path, count, what[4] == 'w');
    if (!strcmp(what, "fsync"))
        return append_and_sync(path, count);
    if (!strcmp(what, "mmapread") || !strcmp(what, "mmapwrite"))
        return mapped(path, what[4] == 'w');
    errx(2, "no such work: %s", what);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        errx(2, "usage: load WHAT PATH [COUNT]");
    printf("%.9f", run(argv[1], argv[2], argc > 3 ? atol(argv[3]) : 0));
    return 0;
}
