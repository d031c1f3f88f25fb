//! What those test programs say that fill a cluster, and compact it.

use ringfence_servers::EtcdCluster;

use crate::common::within;

/// Writes until the cluster has no room for more.
pub(crate) async fn fill(cluster: &EtcdCluster) {
    let large = "x".repeat(100_000);
    let filled = async {
        for number in 0.. {
            if cluster.ask(&["put", &format!("large/{number}"), &large]).await.is_err() {
                break;
            }
        }
    };
    within("the database is full", filled).await;
}

/// The revision of the cluster.
pub(crate) async fn revision(cluster: &EtcdCluster) -> i64 {
    let status = cluster.etcdctl(&["get", "nothing", "--write-out", "json"]).await;
    let (_, rest) = status.split_once("\"revision\":").expect("a revision");
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
}
