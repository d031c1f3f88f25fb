//! A request that comes twice is done once, and both get the same answer.

use ringfence::{ErrorKind, Locks};

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    // The key is the caller's, drawn once for a request and sent with each repetition of it.
    for key in ["9f1c", "9f1c"] {
        let request = locks.idempotency(key).fingerprint("POST /payments amount=4200");
        match request.run(async |_session| charge(key).await).await {
            Ok(receipt) => println!("{}", String::from_utf8_lossy(&receipt)),
            Err(error) if error.kind() == ErrorKind::WaitElapsed => println!("in flight, ask again later"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Hands the key on to whoever takes effect: a crash between the effect and its record would repeat it otherwise.
async fn charge(key: &str) -> ringfence::Result<String> {
    tokio::task::yield_now().await;
    Ok(format!("receipt of {key}"))
}
