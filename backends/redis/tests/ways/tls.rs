use std::path::Path;

use ringfence_core::{Attempt, Backend, BootInstant, Effect, ErrorKind, Release, Renewal, Retry, Wait};
use ringfence_servers::{RedisOptions, RedisServer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::{connect, granted, refusal, release, renew, request, until_one_waits};

async fn server(options: RedisOptions) -> Option<(RedisServer, String)> {
    let server = options.tls().start().await?;
    let url = format!("{}?ca={}", server.url(), shown(server.authority()));
    Some((server, url))
}

fn shown(path: Option<&Path>) -> String {
    path.expect("a server with TLS").display().to_string()
}

#[tokio::test]
async fn locks_are_taken_and_handed_over_by_tls() {
    let Some((_server, url)) = server(RedisOptions::new().password("secret")).await else { return };
    let (ann, ben) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let first = granted(ann.acquire(request(Wait::No))).await;
    assert!(matches!(ben.acquire(request(Wait::No)).await, Ok(Attempt::Busy(_))));
    let (second, ()) = tokio::join!(granted(ben.acquire(request(Wait::Until(BootInstant::MAX)))), async {
        until_one_waits(&ann).await;
        assert_eq!(renew(&ann, &first).await.unwrap(), Renewal::Renewed);
        assert_eq!(release(&ann, &first).await, Release::Released);
    });
    assert!(second.token.sequence() > first.token.sequence());
    assert_eq!(release(&ben, &second).await, Release::Released);
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

#[tokio::test]
async fn a_port_without_tls_is_said_to_have_none() {
    // A server that takes our greeting for the half of a command says nothing; one that sees its end complains.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let complains = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let (silent_port, complaining_port) = (port(&silent), port(&complains));
    tokio::spawn(async move {
        let (mut client, _) = complains.accept().await.expect("a client");
        client.write_all(b"-ERR unknown command\r\n").await.expect("an answer");
        // A reset would be faster than the answer.
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    });
    for (port, kind, retry, hint) in [
        (silent_port, ErrorKind::Unavailable, Retry::Later, "(by TLS, where the URL says rediss:)"),
        (complaining_port, ErrorKind::InvalidUrl, Retry::Never, "does not speak TLS"),
    ] {
        let error = refusal(&format!("rediss://127.0.0.1:{port}")).await;
        assert_eq!((error.kind(), error.retry()), (kind, retry), "{error}");
        assert!(error.message().contains(hint), "{error}");
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
