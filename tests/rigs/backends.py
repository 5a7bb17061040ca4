#!/usr/bin/env python3
"""One kind of storage through all that a replica goes through, for the program under test and the reference.

Run below the script that starts the server: `tests/servers/abs.sh tests/rigs/backends.py --backend abs --bin litestream`.
Everything goes through a proxy of ours that counts turns of the conversation and cuts connections.

* turns: the two programs take turns on one database and one path under load, with compaction, snapshots and retention every
  few seconds. In ours, connections are cut and the server is killed and started again. After each turn both programs restore the newest
  state, and states by TXID and by time: the same bytes from both, an exact past state, not older than wanted.
* wrong: credentials, bucket: an error with the right words within seconds, and no secret in it.
* figures: requests per sync, a large object's MB/s up and down, peak memory, of both programs.
"""

import json
import os
import re
import select
import socket
import sys
import threading
import time
from datetime import datetime, timezone

import chain
import common
import backend_servers
from backend_kinds import KINDS


class Proxy:
    """TCP from a port of its own to the server's. Counts turns (the client speaks after the server has) and bytes."""

    def __init__(self, port):
        self.target, self.turns, self.pairs, self.lock = ("127.0.0.1", int(port)), 0, set(), threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client):
        try:
            server = socket.create_connection(self.target, 5)
        except OSError:
            client.close()
            return
        pair = (client, server)
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            self.pairs.add(pair)
        last = server
        try:
            while True:
                ready, _, _ = select.select(pair, [], [], 300)
                if not ready:
                    break
                for end in ready:
                    data = end.recv(1 << 18)
                    if not data:
                        return
                    if end is client and last is server:
                        with self.lock:
                            self.turns += 1
                    last = end
                    (server if end is client else client).sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.pairs.discard(pair)
            for end in pair:
                end.close()

    def cut(self):
        """Breaks every connection, whatever is under way."""
        with self.lock:
            pairs = list(self.pairs)
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        return len(pairs)


def restore(program, config, db, out, options=(), timeout=120):
    for suffix in ("", "-wal", "-shm", "-journal"):
        (out.parent / (out.name + suffix)).unlink(missing_ok=True)
    return common.run([program.path, "restore", "-config", config, "-o", out, *options, db], timeout)


def both(rig, config, db, where, options=()):
    """The file both programs restore; raises Mismatch if they differ."""
    sums = []
    for program, who in ((rig.bin, "A"), (rig.reference, "B")):
        out = where / f"restored-{who}.db"
        result = restore(program, config, db, out, options)
        if result.code != 0:
            said = " ".join((result.err + result.out).split())[-400:]
            raise common.Mismatch(f"restore {' '.join(options)} by {who}: {said}")
        sums.append(common.sha256_file(out))
    if sums[0] != sums[1]:
        raise common.Mismatch(f"the two programs restore different states {' '.join(options)}")
    return where / "restored-A.db"


def at_moment(program, config, db, where, moment, model):
    """The commit that a program's restore to this moment ends with: an exact past state."""
    out = where / "restored-at.db"
    result = restore(program, config, db, out, ["-timestamp", moment])
    if result.code != 0:
        raise common.Mismatch(f"restore to {moment} by {program.path}: {result.message}")
    return model.verify(out)


def n_long_ago(marks, moment):
    """Commits there were at this time, at least."""
    return max((n for at, n in marks if at <= moment), default=0)


def newest_l0(program, config, db):
    """TXIDs in level 0 as the program lists them."""
    result = common.run([program.path, "ltx", "-config", config, db], 60)
    if result.code != 0:
        raise common.Mismatch(f"ltx: {result.message}")
    return [int(m[1], 16) for m in re.finditer(r"^0\s+[0-9a-f]{16}\s+([0-9a-f]{16})\s", result.out, re.M)]


def turns(rig, backend, proxy):
    where = rig.dir / "turns"
    where.mkdir()
    db = where / "app.db"
    chain.create(db)
    source = common.Db(db)
    source.execute("CREATE TABLE blob (x)")
    source.execute(f"INSERT INTO blob VALUES (randomblob({rig.args.blob_mb * 1_000_000}))")
    replica = {**backend.replica(f"rig-{rig.seed}/db", proxy.port), "sync-interval": "200ms"}
    config = common.write_config(where / "litestream.yml", [{"path": str(db), "monitor-interval": "200ms", "replica": replica}],
                                 levels=[{"interval": "1s"}, {"interval": "2s"}], snapshot={"interval": "3s", "retention": "8s"},
                                 **{"l0-retention": "5s", "l0-retention-check-interval": "1s"})
    crew = chain.Crew(db, where, 2, 50, rig.seed, False, 0)
    model, newest, marks = chain.Model(), 0, []
    common.wait_for(lambda: source.value("SELECT count(*) FROM chain"), 10)
    for turn in range(2 * rig.args.rounds):
        program, name = (rig.bin, "A") if turn % 2 == 0 else (rig.reference, "B")
        case = f"turns: round {turn // 2} {name}"
        daemon = program.replicate_config(config, where / f"daemon-{name}-{turn}.log")
        ends, trouble = time.monotonic() + rig.args.turn_seconds, 0
        while time.monotonic() < ends:
            time.sleep(rig.args.turn_seconds / 8)
            marks.append((time.time(), source.value("SELECT max(n) FROM chain")))
            # The reference may be left behind by this, which is not what is tried here.
            if name == "A":
                trouble += 1
                proxy.cut()
                if trouble == 4:
                    backend.restart(1.0)
        # The last quarter is quiet, so that the daemon can have recovered by itself.
        wanted = source.value("SELECT max(n) FROM chain")
        alive, code = daemon.alive(), daemon.terminate()
        try:
            if not alive or code != 0:
                raise common.Mismatch(f"exit {code}, alive {alive}: {daemon.log_text()[-400:]}")
            n = model.verify(both(rig, config, db, where))
            if n < max(wanted, newest):
                raise common.Mismatch(f"restored {n}, wanted at least {max(wanted, newest)}")
            newest, said = n, [f"commit {n}"]
            txids = newest_l0(rig.bin, config, db)
            if len(txids) > 2:
                # A recent one: what is older than the oldest snapshot cannot be restored any more.
                txid = txids[-3]
                said.append(f"txid {txid}: commit {model.verify(both(rig, config, db, where, ['-txid', f'{txid:016x}']))}")
            at, n_then = marks[-3]
            moment = datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            if backend.same_stamps:
                n = model.verify(both(rig, config, db, where, ["-timestamp", moment]))
            else:
                n = at_moment(rig.bin, config, db, where, moment, model)
                # It sees whole seconds, or when the server got a file: later than our time of it, but by no more than that.
                other, n_soon = at_moment(rig.reference, config, db, where, moment, model), marks[-1][1]
                if not n_long_ago(marks, at - 8) <= other <= n_soon:
                    raise common.Mismatch(f"the reference's restore to {moment} gives commit {other}, ours {n}; soon after there were {n_soon}")
                said.append(f"time, reference: commit {other}")
            if n > n_then:
                raise common.Mismatch(f"restore to {moment} gives commit {n}, at that time there were {n_then}")
            if n < n_long_ago(marks, at - 8):
                raise common.Mismatch(f"restore to {moment} gives commit {n}, 8 s before there were {n_long_ago(marks, at - 8)}")
            said.append(f"time: commit {n} of {n_then}")
            rig.case(case, True, ", ".join(said))
        except common.Mismatch as e:
            rig.case(case, False, str(e))
    crew.stop()
    source.close()


def wrong(rig, backend, proxy):
    where = rig.dir / "wrong"
    where.mkdir()
    db = where / "app.db"
    chain.create(db)
    for label, replica, variables, words in backend.wrong(proxy.port):
        config = common.write_config(where / "litestream.yml", [{"path": str(db), "replica": replica}])
        env = {**os.environ, **variables}
        secrets = [str(v) for k, v in replica.items() if k in SECRETS and len(str(v)) > 6]

        result = common.run([rig.bin.path, "restore", "-config", config, "-o", where / "out.db", db], 30, env=env)
        text = result.out + result.err
        right = result.code not in (0, -999) and any(word in text for word in words) and result.seconds < 10
        rig.case(f"wrong: {label}, restore", right and not any(s in text for s in secrets), f"{result.seconds:.1f} s: {result.message[:160]}")

        log = where / f"{label.replace(' ', '-')}.log"
        daemon = common.Daemon([rig.bin.path, "replicate", "-config", config], log, env=env)
        began = time.monotonic()
        said = common.wait_for(lambda: any(word in daemon.log_text() for word in words), 10)
        seconds, text = time.monotonic() - began, daemon.log_text()
        daemon.kill()
        rig.case(f"wrong: {label}, replicate", said and not any(s in text for s in secrets), f"{seconds:.1f} s")


SECRETS = {"account-key", "sas-token", "secret-access-key", "password", "token", "webdav-password", "seed", "jwt"}


def figures(rig, backend, proxy):
    table = []
    for program, name in ((rig.bin, "ours"), (rig.reference, "0.5.17")):
        where = rig.dir / f"figures-{name}"
        where.mkdir()
        db = where / "big.db"
        app = common.Db(db)
        app.execute("PRAGMA journal_mode = WAL")
        app.execute("CREATE TABLE t (x)")
        for _ in range(rig.args.big_mb // 10):
            app.execute("INSERT INTO t VALUES (randomblob(10000000))")
        replica = backend.replica(f"fig-{rig.seed}/{name}", backend.port)
        config = common.write_config(where / "litestream.yml", [{"path": str(db), "replica": replica}])
        env = {**os.environ, **backend.environment(backend.port)}
        up = common.run([program.path, "replicate", "-once", "-config", config], 600, env=env)
        down = common.run([program.path, "restore", "-config", config, "-o", where / "out.db", db], 600, env=env)
        same = up.code == down.code == 0 and not common.differing_pages(where / "out.db", common.folded(db, where / "folded"))
        app.close()

        small = where / "small.db"
        chain.create(small)
        replica = backend.replica(f"fig-{rig.seed}/{name}-small", proxy.port)
        config = common.write_config(where / "small.yml", [{"path": str(small), "replica": replica}])
        daemon = program.replicate_config(config, where / "small.log")
        app = common.Db(small)
        time.sleep(3)
        before, syncs = proxy.turns, 0
        for _ in range(10):
            chain.step(app, 1)
            syncs += 1
            time.sleep(1.3)
        requests = (proxy.turns - before) / syncs
        # The compaction of what was just committed comes at :00 and :30.
        time.sleep(33 - time.time() % 30)
        before = proxy.turns
        time.sleep(5)
        idle, rss = proxy.turns - before, rss_mb(daemon.pid)
        code = daemon.terminate()
        app.close()
        row = {"program": name, "requests per sync": round(requests, 1), "requests in 5 idle s": idle, "MB/s up": round(rig.args.big_mb / up.seconds, 1),
               "MB/s down": round(rig.args.big_mb / down.seconds, 1), "peak RSS up MB": up.max_rss_kb // 1024,
               "peak RSS down MB": down.max_rss_kb // 1024, "RSS of the daemon MB": rss}
        table.append(row)
        said = json.dumps(row) if same and code == 0 else f"up {up.code} {up.message}, down {down.code} {down.message}, daemon {code}"
        rig.case(f"figures: {name}", same and code == 0, said)
        if name == "ours":
            limit = rig.args.rss_mb
            rig.case("figures: memory is bounded", max(up.max_rss_kb, down.max_rss_kb) < limit * 1024, f"below {limit} MB for {rig.args.big_mb} MB")
        common.run(["rm", "-rf", str(where)], 60)
    return table


def rss_mb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) // 1024


def main():
    p = common.parser(__doc__, rounds=2)
    p.add_argument("--backend", choices=sorted({**KINDS, **backend_servers.SERVERS}), required=True)
    p.add_argument("--turn-seconds", type=float, default=8.0, help="how long each program runs")
    p.add_argument("--blob-mb", type=int, default=13, help="size of a row that is there from the start")
    p.add_argument("--big-mb", type=int, default=300, help="size of the large object")
    p.add_argument("--rss-mb", type=int, default=100, help="memory the program may take for it")
    p.add_argument("--only", choices=["turns", "wrong", "figures"], action="append")
    rig = common.Rig("backends", args := p.parse_args())
    if not rig.reference:
        sys.exit("the reference program is needed")
    # The reference cannot start with it.
    os.environ.pop("AWS_CA_BUNDLE", None)
    backend = {**KINDS, **backend_servers.SERVERS}[args.backend]()
    proxy = Proxy(backend.port)
    os.environ.update(backend.environment(proxy.port))
    for part in (turns, wrong, figures):
        if not args.only or part.__name__ in args.only:
            part(rig, backend, proxy)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
