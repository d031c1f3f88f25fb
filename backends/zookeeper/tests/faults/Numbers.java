import java.io.File;
import java.util.concurrent.ConcurrentHashMap;

import org.apache.zookeeper.server.DataTree;
import org.apache.zookeeper.server.persistence.FileTxnSnapLog;

/**
 * Lets a node have had nearly as many children as a server can count. Arguments: the folder of a server that does not run, the
 * node, and the number that its next child is to have.
 */
class Numbers {
    public static void main(String[] arguments) throws Exception {
        var folder = new File(arguments[0]);
        var files = new FileTxnSnapLog(folder, folder);
        var tree = new DataTree();
        var sessions = new ConcurrentHashMap<Long, Integer>();
        files.restore(tree, sessions, (header, record, digest) -> {});
        tree.getNode(arguments[1]).stat.setCversion(Integer.parseInt(arguments[2]));
        files.save(tree, sessions, true);
        files.close();
    }
}
