use std::path::Path;

use ringfence_core::{
    Attempt, Backend, BootInstant, Effect, Error, ErrorKind, Lease, Release, Renewal, Retry, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisCluster, RedisOptions, RedisServer, Sentinels};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cluster::until;
use crate::{FAILOVER_PATIENCE, connect, granted, refusal, release, renew, request, until_one_waits};

async fn server(options: RedisOptions) -> Option<(RedisServer, String)> {
    let server = options.tls().start().await?;
    let url = format!("{}?ca={}", server.url(), shown(server.authority()));
    Some((server, url))
}

fn shown(path: Option<&Path>) -> String {
    path.expect("a server with TLS").display().to_string()
}

/// Has two processes take a lock, one after the other, and then the second one once more, without a wait: that lease stands for
/// its whole TTL, where a turn stands for a moment until it is renewed.
async fn hand_over(url: &str) -> (RedisBackend, Lease) {
    let (ann, ben) = (connect(url).await.unwrap(), connect(url).await.unwrap());
    let first = granted(ann.acquire(request(Wait::No))).await;
    assert!(matches!(ben.acquire(request(Wait::No)).await, Ok(Attempt::Busy(_))));
    let (second, ()) = tokio::join!(granted(ben.acquire(request(Wait::Until(BootInstant::MAX)))), async {
        until_one_waits(&ann).await;
        assert_eq!(renew(&ann, &first).await.unwrap(), Renewal::Renewed);
        assert_eq!(release(&ann, &first).await, Release::Released);
    });
    assert!(second.token.sequence() > first.token.sequence());
    assert!(second.lasts < second.key.ttl.as_duration(), "it was told of its turn: {second:?}");
    assert_eq!(release(&ben, &second).await, Release::Released);
    let third = granted(ben.acquire(request(Wait::No))).await;
    (ben, third)
}

#[tokio::test]
async fn locks_are_taken_and_handed_over_by_tls() {
    let Some((_server, url)) = server(RedisOptions::new().password("secret")).await else { return };
    let (ben, lease) = hand_over(&url).await;
    assert_eq!(release(&ben, &lease).await, Release::Released);
}

/// Checks that it is useless to try again as long as nothing else is changed.
fn assert_untrusted(error: &Error, hint: &str) {
    let about = (error.kind(), error.retry(), error.effect());
    assert_eq!(about, (ErrorKind::Refused, Retry::Never, Effect::None), "{error}");
    assert!(error.message().contains(hint), "expected {hint:?}: {error}");
}

#[tokio::test]
async fn sentinels_and_the_servers_that_they_name_are_spoken_to_by_tls() {
    let Some(mut sentinels) = Sentinels::start_with_tls("127.0.0.1").await else { return };
    let url = format!("{}?tls=on&ca={}", sentinels.url(), shown(sentinels.servers()[0].authority()));
    let (ben, lease) = hand_over(&url).await;
    assert_eq!(release(&ben, &lease).await, Release::Released);
    // Neither with the system's authorities nor with those of somebody else.
    let Some((_other, others_url)) = server(RedisOptions::new()).await else { return };
    let others = others_url.split_once('?').expect("its authority").1;
    for params in ["tls=on".to_owned(), format!("tls=on&{others}")] {
        let error = refusal(&format!("{}?{params}", sentinels.url())).await;
        assert_untrusted(&error, "?ca=/path.pem");
        assert!(error.message().contains("the Sentinel 127.0.0.1:"), "{error}");
    }
    let error = refusal(&sentinels.url()).await;
    assert!(error.message().contains("speak TLS (rediss:, or tls=on"), "{error}");
    // The one that is promoted is found by TLS as well.
    let old = sentinels.kill_primary().await;
    sentinels.wait_for_failover(old).await;
    let next = tokio::time::timeout(FAILOVER_PATIENCE, async {
        loop {
            match ben.acquire(request(Wait::No)).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                attempt => break granted(async { attempt }).await,
            }
        }
    });
    assert!(next.await.expect("a failover in time").token.sequence() > lease.token.sequence());
}

/// The Sentinels are trusted, by their address. They name the primary by a name that its certificate does not know.
#[tokio::test]
async fn a_primary_is_who_its_sentinels_say() {
    let Some(sentinels) = Sentinels::start_with_tls("localhost").await else { return };
    let url = format!("{}?tls=on&ca={}", sentinels.url(), shown(sentinels.servers()[0].authority()));
    let error = refusal(&url).await;
    assert_untrusted(&error, "for another host");
    let named =
        format!("localhost:{}, which its Sentinels name as the primary", sentinels.servers()[0].port());
    assert!(error.message().contains(&named) && error.message().contains("announce-hostnames"), "{error}");
}

#[tokio::test]
async fn every_node_of_a_cluster_is_spoken_to_by_tls() {
    let Some(cluster) = RedisCluster::start_with_tls().await else { return };
    let nodes = cluster.nodes();
    let params = format!("?tls=on&ca={}", shown(nodes[0].authority()));
    let (ben, lease) = hand_over(&format!("{}{params}", cluster.url())).await;
    // A node that is learned of by an answer, too: the slot moves, and the old master is asked for it.
    let slot = cluster.slot_of("ringfence:{orders/42}").await;
    let from = cluster.master_of(slot).await;
    let to = (from + 1) % RedisCluster::MASTERS;
    cluster.move_slot(slot, to).await;
    assert_eq!(renew(&ben, &lease).await.unwrap(), Renewal::Renewed);
    assert_eq!(nodes[to].command(&["exists", "ringfence:{orders/42}"]).await, "1");
    assert_eq!(release(&ben, &lease).await, Release::Released);
    let Some((_other, others_url)) = server(RedisOptions::new()).await else { return };
    let others = others_url.split_once('?').expect("its authority").1;
    for params in ["tls=on".to_owned(), format!("tls=on&{others}")] {
        assert_untrusted(&refusal(&format!("{}?{params}", cluster.url())).await, "?ca=/path.pem");
    }
    let error = refusal(&cluster.url()).await;
    assert!(error.message().contains("speak TLS (rediss:, or tls=on"), "{error}");
    // The node of the URL is trusted, by its address. It names all by a name that their certificate does not know.
    for node in nodes {
        node.command(&["config", "set", "cluster-announce-hostname", "localhost"]).await;
        node.command(&["config", "set", "cluster-preferred-endpoint-type", "hostname"]).await;
    }
    for node in nodes {
        until("every node knows by which name the others want to be called", async || {
            node.command(&["cluster", "nodes"]).await.matches(",localhost").count() == nodes.len()
        })
        .await;
    }
    let error = refusal(&format!("{}{params}", cluster.url())).await;
    assert_untrusted(&error, "for another host");
    assert!(error.message().contains("localhost:"), "{error}");
    assert!(error.message().contains("cluster-announce-hostname"), "{error}");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_trusted() {
    let Some((server, url)) = server(RedisOptions::new()).await else { return };
    let Some((other, _)) = self::server(RedisOptions::new()).await else { return };
    let others_authority = format!("{}?ca={}", server.url(), shown(other.authority()));
    for (url, kind, hint) in [
        // The system's authorities do not know it, and neither does another one.
        (server.url(), ErrorKind::Refused, "?ca=/path.pem"),
        (others_authority, ErrorKind::Refused, "?ca=/path.pem"),
        // Its certificate is for 127.0.0.1.
        (url.replace("127.0.0.1", "localhost"), ErrorKind::Refused, "for another host"),
    ] {
        let error = refusal(&url).await;
        assert_eq!(
            (error.kind(), error.retry(), error.effect()),
            (kind, Retry::Never, Effect::None),
            "{error}"
        );
        assert!(error.message().contains(hint) && error.message().contains("rediss://"), "{url}: {error}");
    }
}

/// A port on which somebody says nothing to us, because it takes our greeting for the half of a command.
async fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// A port on which somebody sees the end of our greeting, and complains.
async fn complaining() -> u16 {
    let (listener, port) = silent().await;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.write_all(b"-ERR unknown command\r\n").await.expect("an answer");
            // A reset would be faster than the answer.
            tokio::spawn(async move { tokio::io::copy(&mut client, &mut tokio::io::sink()).await });
        }
    });
    port
}

#[tokio::test]
async fn a_port_without_tls_is_said_to_have_none() {
    let ((_listener, silent), complaining) = (silent().await, complaining().await);
    let mut refusals = JoinSet::new();
    for (scheme, end) in [("rediss", ""), ("redis+sentinel", "/service?tls=on"), ("redis+cluster", "?tls=on")]
    {
        for (port, kind, retry, hint) in [
            (silent, ErrorKind::Unavailable, Retry::Later, "(by TLS, where the URL says rediss: or tls=on)"),
            (complaining, ErrorKind::InvalidUrl, Retry::Never, "does not speak TLS"),
        ] {
            let url = format!("{scheme}://127.0.0.1:{port}{end}");
            refusals.spawn(async move { (refusal(&url).await, port, (kind, retry), hint) });
        }
    }
    for (error, port, expected, hint) in refusals.join_all().await {
        assert_eq!((error.kind(), error.retry()), expected, "{error}");
        assert!(error.message().contains(hint), "{error}");
        assert!(error.message().contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_shown_a_certificate() {
    let Some((server, url)) = server(RedisOptions::new().set("tls-auth-clients", &["yes"])).await else {
        return;
    };
    let error = refusal(&url).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Refused, Retry::Never), "{error}");
    assert!(error.message().contains("?cert="), "{error}");
    let (certificate, key) = server.certificate().expect("a server with TLS");
    let url = format!("{url}&cert={}&key={}", certificate.display(), key.display());
    let ann = connect(&url).await.unwrap();
    granted(ann.acquire(request(Wait::No))).await;
    // A certificate of a stranger is not enough.
    let Some((other, _)) = self::server(RedisOptions::new()).await else { return };
    let (certificate, key) = other.certificate().expect("a server with TLS");
    let url = format!(
        "{}?ca={}&cert={}&key={}",
        server.url(),
        shown(server.authority()),
        certificate.display(),
        key.display()
    );
    let error = refusal(&url).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Refused, Retry::Never), "{error}");
}
