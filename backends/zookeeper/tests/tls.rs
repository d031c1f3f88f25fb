//! By TLS: whom we trust, and who we are.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Effect, Error, ErrorKind, HolderInfo, Mode, Release,
    Renewal, Result, Retry, Severity, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, ZooKeeperOptions};
use ringfence_zookeeper::ZooKeeperBackend;

async fn connect(url: &str) -> Result<ZooKeeperBackend> {
    ZooKeeperBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

async fn refusal(url: &str) -> Error {
    tokio::time::timeout(Duration::from_secs(20), connect(url))
        .await
        .unwrap_or_else(|_| panic!("an answer in time of {url}"))
        .expect_err(url)
}

/// Checks that it is useless to try again as long as nothing else is changed.
fn assert_untrusted(error: &Error, hint: &str) {
    let about = (error.kind(), error.retry(), error.effect());
    assert_eq!(about, (ErrorKind::Refused, Retry::Never, Effect::None), "{error}");
    assert!(error.message().contains(hint), "expected {hint:?}: {error}");
}

fn request(name: &str) -> AcquireRequest {
    let holder = HolderInfo::new("tls", "here", 1).expect("lawful words");
    AcquireRequest::new(name.parse().expect("a lawful name"), Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder)
}

/// Takes a lock, renews it, gives it back.
async fn works(client: &ZooKeeperBackend) {
    let Ok(Attempt::Granted(lease)) = client.acquire(request("orders/42")).await else {
        panic!("a free lock is granted")
    };
    let key = std::slice::from_ref(&lease.key);
    assert_eq!(client.renew(key).await.expect("an answer"), [Renewal::Renewed]);
    assert_eq!(client.release(key).await.expect("an answer"), [Release::Released]);
}

fn shown(file: &Path) -> std::path::Display<'_> {
    file.display()
}

#[tokio::test]
async fn servers_are_spoken_to_by_tls_if_they_are_whom_we_trust() {
    let Some(servers) = ZooKeeperOptions::new().tls().start().await else { return };
    let Some(others) = ZooKeeperOptions::new().tls().start().await else { return };
    let of = |servers: &Ensemble| shown(servers.certificates().expect("TLS")[0]).to_string();
    let (url, ca) = (servers.tls_url(), of(&servers));
    let client = connect(&format!("{url}?tls=on&ca={ca}")).await.expect("a server that we trust");
    works(&client).await;
    let findings = client.examine().await.expect("an examination");
    let version = findings.iter().find(|finding| finding.about == "version");
    assert_eq!(
        version.map(|finding| finding.severity),
        Some(Severity::Fine),
        "it is asked by TLS: {findings:?}"
    );

    // Neither with the system's authorities nor with those of somebody else.
    for params in ["tls=on".to_owned(), format!("tls=on&ca={}", of(&others))] {
        assert_untrusted(&refusal(&format!("{url}?{params}")).await, "?ca=/path.pem");
    }
    let by_name = url.replace("127.0.0.1", "localhost");
    assert_untrusted(&refusal(&format!("{by_name}?tls=on&ca={ca}")).await, "is for another host");
    for wrong in [url, format!("{}?tls=on&ca={ca}", servers.url())] {
        let error = refusal(&wrong).await;
        assert!(error.message().contains("TLS"), "it says which port may be meant: {error}");
    }
}

#[tokio::test]
async fn who_has_to_be_known_shows_a_certificate() {
    let Some(servers) = ZooKeeperOptions::new().tls_for_known_clients().start().await else { return };
    let [ca, cert, key] = servers.certificates().expect("TLS").map(shown);
    let url = format!("{}?tls=on&ca={ca}", servers.tls_url());
    assert_untrusted(&refusal(&url).await, "?cert=/path.pem&key=/path.pem");
    let client = connect(&format!("{url}&cert={cert}&key={key}")).await.expect("a client that is known");
    works(&client).await;
}

/// Certificates are replaced while fleets run, and not always by the right one at first.
#[tokio::test]
async fn a_certificate_that_is_wrong_for_a_moment_costs_nobody_a_lease() {
    let Some(mut servers) = ZooKeeperOptions::new().tls().start().await else { return };
    let Some(others) = ZooKeeperOptions::new().tls().start().await else { return };
    // A server has its certificate and its key in one file.
    let folder = servers.files(0);
    let both_of = |ensemble: &Ensemble, name: &str| {
        let [_, certificate, key] = ensemble.certificates().expect("TLS");
        let text = [key, certificate].map(|file| fs::read_to_string(file).expect("a file of ours")).concat();
        let both = folder.join(name);
        fs::write(&both, text).expect("a temporary folder can be written to");
        both.display().to_string()
    };
    let (right, wrong) = (both_of(&servers, "right.pem"), both_of(&others, "wrong.pem"));
    let url = format!("{}?tls=on&ca={}", servers.tls_url(), shown(servers.certificates().expect("TLS")[0]));
    let client = connect(&url).await.expect("a server that we trust");
    let Ok(Attempt::Granted(lease)) = client.acquire(request("orders/42")).await else {
        panic!("a free lock is granted")
    };
    let renewed = async |is_meant: fn(&Result<Vec<Renewal>>) -> bool| {
        tokio::time::timeout(Duration::from_secs(25), async {
            loop {
                let renewed = client.renew(std::slice::from_ref(&lease.key)).await;
                if is_meant(&renewed) {
                    return renewed;
                }
            }
        })
        .await
        .expect("an answer that is meant")
    };
    servers.set(0, "ssl.keyStore.location", &wrong);
    servers.restart(0);
    // Until it is there again, and is not trusted.
    let refused =
        renewed(|answer| !matches!(answer, Err(error) if error.kind() == ErrorKind::Unavailable)).await;
    assert_eq!(refused.expect_err("nobody can be trusted").kind(), ErrorKind::Refused);
    servers.set(0, "ssl.keyStore.location", &right);
    servers.restart(0);
    assert_eq!(renewed(Result::is_ok).await.expect("an answer"), [Renewal::Renewed]);
}
