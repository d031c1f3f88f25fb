import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.retry.RetryForever;

/**
 * A lock of Curator, told by lines what to do; it answers each with yes or no. Arguments: hosts, path, and which lock: Mutex,
 * ReadLock or WriteLock. Its session lives for five seconds after its process is killed.
 */
class Lock {
    public static void main(String[] arguments) throws Exception {
        var client = CuratorFrameworkFactory.newClient(arguments[0], 5_000, 5_000, new RetryForever(100));
        client.start();
        var path = arguments[1];
        var lock = switch (arguments[2]) {
            case "Mutex" -> new InterProcessMutex(client, path);
            case "ReadLock" -> new InterProcessReadWriteLock(client, path).readLock();
            case "WriteLock" -> new InterProcessReadWriteLock(client, path).writeLock();
            default -> throw new IllegalArgumentException(arguments[2]);
        };
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (var line = lines.readLine(); line != null; line = lines.readLine()) {
            var isDone = switch (line) {
                case "try" -> lock.acquire(0, TimeUnit.SECONDS);
                case "wait" -> {
                    lock.acquire();
                    yield true;
                }
                case "release" -> {
                    lock.release();
                    yield true;
                }
                default -> throw new IllegalArgumentException(line);
            };
            System.out.println(isDone ? "yes" : "no");
        }
        // Its threads would go on.
        System.exit(0);
    }
}
