//! A service of axum behind a fence, and a client that goes on after it lost its lock: `cargo run -p ringfence-http --example axum`.

use std::error::Error;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Extension, Router};
use ringfence::Locks;
use ringfence_http::{FenceLayer, Gate, TOKEN_HEADER, TokenHeader};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

type Ledger = Arc<Mutex<Vec<String>>>;

/// The gate knows only which lock the client speaks of: that it is the lock of this order is for us to check.
async fn charge(
    Path(order): Path<String>,
    Extension(token): Extension<TokenHeader>,
    State(ledger): State<Ledger>,
) -> StatusCode {
    if token.name().as_str() != format!("orders/{order}") {
        return StatusCode::FORBIDDEN;
    }
    ledger.lock().await.push(format!("{order} with {}", token.token().token()));
    StatusCode::NO_CONTENT
}

/// Serves, and sends what a holder that was overtaken would send.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    // A store that the clients' locks share; "memory:" is one process.
    let locks = Locks::connect("memory:").await?;
    let ledger = Ledger::default();
    let gate = Gate::new(Arc::new(locks.clone()));
    let app = Router::new()
        .route("/orders/{order}/charge", put(charge))
        .layer(FenceLayer::new(gate))
        .with_state(Arc::clone(&ledger));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/orders/42/charge", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let client = reqwest::Client::new();
    let guard = locks.lock("orders/42").acquire().await?;
    let header = TokenHeader::new(guard.name().clone(), guard.presented_token()).to_value();
    let charged = client.put(&url).header(TOKEN_HEADER, header.clone()).send().await?;
    assert_eq!(charged.status(), 204);

    // The holder is thrown out, or was paused for longer than its lease; its last request is still on its way.
    locks.evict("orders/42", guard.token().nonce()).await?;
    let next = locks.lock("orders/42").acquire().await?;
    let late = client.put(&url).header(TOKEN_HEADER, header).send().await?;
    assert_eq!(late.status(), 412);
    println!("refused: {}", late.text().await?);

    let other_lock = locks.lock("orders/43").acquire().await?;
    let header = TokenHeader::new(other_lock.name().clone(), other_lock.presented_token()).to_value();
    assert_eq!(client.put(&url).header(TOKEN_HEADER, header).send().await?.status(), 403);
    assert_eq!(client.put(&url).send().await?.status(), 428);
    assert_eq!(ledger.lock().await.len(), 1, "charged once");
    // What is not given back is somebody else's only when its TTL is over.
    other_lock.release().await?;
    next.release().await?;
    Ok(())
}
