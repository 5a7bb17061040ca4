/* A full-speed writer: one small INSERT per commit, in WAL mode, with SQLite's own auto-checkpoint.
 *
 *   writer DB SECONDS PAYLOAD_BYTES COMMITS_PER_SECOND      (0 = as fast as it goes)
 *
 * Prints one JSON object: commits, seconds, and the latency of each commit (BEGIN to COMMIT) as quantiles in microseconds.
 */
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void must(sqlite3 *db, int code, const char *what) {
    if (code == SQLITE_OK || code == SQLITE_DONE || code == SQLITE_ROW) return;
    fprintf(stderr, "%s: %s\n", what, sqlite3_errmsg(db));
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: writer DB SECONDS PAYLOAD_BYTES COMMITS_PER_SECOND\n"), 2;
    double limit = atof(argv[2]);
    int size = atoi(argv[3]);
    double pause = atof(argv[4]) > 0 ? 1 / atof(argv[4]) : 0;
    sqlite3 *db;
    must(NULL, sqlite3_open(argv[1], &db), "open");
    sqlite3_busy_timeout(db, 10000);
    must(db, sqlite3_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                              "CREATE TABLE IF NOT EXISTS w (id INTEGER PRIMARY KEY, data BLOB)", 0, 0, 0), "prepare");
    sqlite3_stmt *insert;
    must(db, sqlite3_prepare_v2(db, "INSERT INTO w (data) VALUES (?)", -1, &insert, 0), "prepare");
    size_t room = 1 << 20, n = 0, busy = 0;
    float *micro = malloc(room * sizeof *micro);
    unsigned char *data = malloc(size + 8);
    uint64_t x = 88172645463325252ull;
    double began = now(), at = began, due = began;
    while (at - began < limit) {
        for (int i = 0; i < size; i += 8) {
            x ^= x << 13; x ^= x >> 7; x ^= x << 17;
            memcpy(data + i, &x, 8);
        }
        if (pause > 0) {
            due += pause;
            double left = due - now();
            if (left > 0) nanosleep(&(struct timespec){(time_t)left, (long)((left - (time_t)left) * 1e9)}, NULL);
            else due = now(); /* a stall is not made up for */
        }
        double start = now();
        sqlite3_bind_blob(insert, 1, data, size, SQLITE_STATIC);
        int code = sqlite3_step(insert);
        sqlite3_reset(insert);
        at = now();
        if (code == SQLITE_BUSY) { busy++; continue; }
        must(db, code, "insert");
        if (n == room) micro = realloc(micro, (room *= 2) * sizeof *micro);
        micro[n++] = (float)((at - start) * 1e6);
    }
    double seconds = at - began;
    size_t slow = 0;
    for (size_t i = 0; i < n; i++) slow += micro[i] > 50000;
    qsort(micro, n, sizeof *micro, ascending);
#define Q(q) (n ? micro[(size_t)((q) * n) < n ? (size_t)((q) * n) : n - 1] : 0)
    printf("{\"commits\":%zu,\"seconds\":%.3f,\"busy\":%zu,\"over_50ms\":%zu,\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f,\"sqlite\":\"%s\"}\n",
           n, seconds, busy, slow, Q(0.5), Q(0.99), Q(0.999), n ? micro[n - 1] : 0, sqlite3_libversion());
    sqlite3_finalize(insert);
    sqlite3_close(db);
    return 0;
}
