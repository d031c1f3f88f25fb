import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.RetryForever;

/**
 * The mutex of Curator as a contender of the benchmark: src/contender/mod.rs says what is asked of it. Tasks are threads; those
 * that want the same lock have a client each.
 */
class Curator {
    static final int TTL_MS = 30_000;

    /** What one task has to say at the end. */
    record Outcome(long count, List<Long> pairs, List<Long> waits, List<Long> handovers) {
        Outcome() {
            this(0, new ArrayList<>(), new ArrayList<>(), new ArrayList<>());
        }

        Outcome counted(long count) {
            return new Outcome(count, pairs, waits, handovers);
        }
    }

    final Map<String, String> asked = new HashMap<>();

    Curator(String[] arguments) {
        for (int at = 0; at < arguments.length; at += 2) {
            asked.put(arguments[at], arguments[at + 1]);
        }
    }

    public static void main(String[] arguments) throws Exception {
        new Curator(arguments).run();
        // The threads of Curator would go on.
        System.exit(0);
    }

    long nanos(String name) {
        return Long.parseLong(asked.getOrDefault(name, "0")) * 1_000_000;
    }

    CuratorFramework connect() throws Exception {
        var host = "127.0.0.1:" + asked.get("--servers").split(",")[0];
        var client = CuratorFrameworkFactory.newClient(host, TTL_MS, TTL_MS, new RetryForever(100));
        client.start();
        client.blockUntilConnected();
        return client;
    }

    void run() throws Exception {
        int tasks = Integer.parseInt(asked.get("--tasks"));
        long first = Long.parseLong(asked.get("--id"));
        var inside = asked.get("--inside");
        var client = connect();
        var ready = new ArrayList<Callable<Outcome>>();
        for (long id = first; id < first + tasks; id++) {
            if (inside != null && id > first) {
                client = connect();
            }
            var own = new InterProcessMutex(client, "/curator/bench/" + id);
            own.acquire();
            own.release();
            var same = new InterProcessMutex(client, "/curator/same");
            long number = id;
            ready.add(inside == null ? () -> takeOwn(own) : () -> takeSame(same, number, inside));
        }
        System.out.println("ready");
        System.in.read();
        var outcomes = new ArrayList<Outcome>();
        for (Future<Outcome> outcome : Executors.newFixedThreadPool(tasks).invokeAll(ready)) {
            outcomes.add(outcome.get());
        }
        var counts = outcomes.stream().map(Outcome::count).toList();
        var pairs = outcomes.stream().flatMap(outcome -> outcome.pairs.stream()).toList();
        var waits = outcomes.stream().flatMap(outcome -> outcome.waits.stream()).toList();
        var handovers = outcomes.stream().flatMap(outcome -> outcome.handovers.stream()).toList();
        // A list of numbers is written as JSON has it.
        System.out.println("{\"counts\": " + counts + ", \"pairs\": " + pairs + ", \"waits\": " + waits
                + ", \"handovers\": " + handovers + "}");
    }

    Outcome takeOwn(InterProcessMutex lock) throws Exception {
        var outcome = new Outcome();
        long until = System.nanoTime() + nanos("--millis");
        while (System.nanoTime() < until) {
            long pair = System.nanoTime();
            lock.acquire();
            lock.release();
            outcome.pairs.add(System.nanoTime() - pair);
        }
        return outcome.counted(outcome.pairs.size());
    }

    Outcome takeSame(InterProcessMutex lock, long id, String inside) throws Exception {
        var outcome = new Outcome();
        long count = 0;
        try (var file = new RandomAccessFile(inside, "rw")) {
            var last = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN);
            long from = System.nanoTime() + nanos("--settle-ms");
            long until = from + nanos("--millis");
            while (System.nanoTime() < until) {
                long wanted = System.nanoTime();
                lock.acquire();
                long entered = System.nanoTime();
                boolean counts = from <= entered && entered < until;
                int read = file.getChannel().read(last.clear(), 0);
                if (counts && read == 16 && last.getLong(0) != id) {
                    outcome.waits.add(entered - wanted);
                    // This clock is the one that all processes of this machine have.
                    outcome.handovers.add(Math.max(entered - last.getLong(8), 0));
                }
                count += counts ? 1 : 0;
                // Without a time it comes back at once.
                Thread.sleep(Long.parseLong(asked.getOrDefault("--hold-ms", "0")));
                last.clear().putLong(id).putLong(System.nanoTime()).flip();
                file.getChannel().write(last, 0);
                lock.release();
            }
        }
        return outcome.counted(count);
    }
}
