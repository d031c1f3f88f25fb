//! A web handler that charges an account once, however often its request comes.
//!
//! ```sh
//! cargo run --example charge_once -- 127.0.0.1:8080
//! curl -i -H 'Idempotency-Key: 9f1c' -d '{"account":"ann","amount":42}' http://127.0.0.1:8080/charges
//! curl -i -H 'Idempotency-Key: 9f1c' -d '{"account":"ann","amount":42}' http://127.0.0.1:8080/charges   # the same answer
//! curl http://127.0.0.1:8080/accounts/ann
//! ```
//!
//! Two things make it once, and both are needed. The idempotency key lets one of several like requests work, and gives its answer
//! to the others. It cannot tell whether a worker that died had charged already. So the account itself remembers which keys it
//! was charged for, and in the very write that charges it: whoever does the work again finds that it is done.
//!
//! `PAUSE=before-charge` and `PAUSE=after-charge` have it hang there for ever, to be killed: the two instants at which a crash hurts.
//!
//! The second argument is a URL of locks, which all such servers share; `local:` unless you choose.

use std::collections::VecDeque;
use std::env;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ringfence::patterns::Begun;
use ringfence::{Error, ErrorKind, Locks, Record};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// The largest request body, in bytes.
const BODY_MAX: usize = 16 * 1024;

/// How long a request waits for one like it, before its client is told to come back.
const WAIT: Duration = Duration::from_secs(10);

/// How many charges an account remembers. A real one remembers them for as long as idempotency keys are kept.
const CHARGES_MAX: usize = 200;

/// What a client asks for.
#[derive(Debug, Deserialize)]
struct Charge {
    account: String,
    amount: i64,
}

/// What an account keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
    /// The idempotency keys that it was charged for, and its balance after each.
    charges: VecDeque<(String, i64)>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let locks = Locks::connect(&arguments.next().unwrap_or_else(|| "local:".to_owned())).await?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        let locks = locks.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Error>(answer(&locks, request).await) });
            let served = hyper::server::conn::http1::Builder::new();
            if let Err(error) = served.serve_connection(TokioIo::new(connection), service).await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

async fn answer(locks: &Locks, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let account = request.uri().path().strip_prefix("/accounts/").map(str::to_owned);
    let answer = match (request.method(), account) {
        (&Method::POST, None) if request.uri().path() == "/charges" => charge(locks, request).await,
        (&Method::GET, Some(account)) => balance(locks, &account).await,
        _ => Ok(says(StatusCode::NOT_FOUND, "POST /charges, or GET /accounts/NAME")),
    };
    answer.unwrap_or_else(|error| {
        let status = match error.kind() {
            ErrorKind::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::InvalidName | ErrorKind::InvalidRequest => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        says(status, error.message())
    })
}

/// Charges once for each idempotency key.
///
/// A client that hangs up drops this future, and with it the session: the key is free for the next try.
async fn charge(locks: &Locks, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Error> {
    let Some(key) = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return Ok(says(
            StatusCode::BAD_REQUEST,
            "draw an Idempotency-Key for each charge, and send it again with each try",
        ));
    };
    let key = key.to_owned();
    let body = match Limited::new(request.into_body(), BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(says(StatusCode::PAYLOAD_TOO_LARGE, "a charge is at most 16 KiB"));
        }
        Err(_) => return Ok(says(StatusCode::BAD_REQUEST, "the body ended early")),
    };
    let Ok(charge) = serde_json::from_slice::<Charge>(&body) else {
        return Ok(says(StatusCode::BAD_REQUEST, r#"a charge is {"account":"ann","amount":42}"#));
    };
    match locks.idempotency(&key).fingerprint(&body).wait(WAIT).begin().await? {
        Begun::Started(mut session) => {
            pause("before-charge").await;
            let receipt = take_from_account(locks, &key, &charge).await?;
            pause("after-charge").await;
            session.complete(&receipt).await?;
            Ok(json(StatusCode::CREATED, receipt))
        }
        Begun::Done(receipt) => {
            let mut again = json(StatusCode::OK, receipt);
            again.headers_mut().insert("idempotent-replayed", "true".parse().expect("a header's value"));
            Ok(again)
        }
        Begun::InFlight(_) => {
            let mut later =
                says(StatusCode::CONFLICT, "this charge is in hand: send it again, with the same key");
            later.headers_mut().insert(RETRY_AFTER, "1".parse().expect("a header's value"));
            Ok(later)
        }
    }
}

/// The charge, and the memory of it, in one write. Done again, for a key that it knows, it changes nothing.
async fn take_from_account(locks: &Locks, key: &str, charge: &Charge) -> Result<Bytes, Error> {
    let record = locks.versioned(format!("accounts/{}", charge.account));
    record
        .update(async |current| {
            let mut account = read(current.as_ref())?;
            if account.balance_after(key).is_none() {
                account.balance -= charge.amount;
                account.charges.push_back((key.to_owned(), account.balance));
            }
            if account.charges.len() > CHARGES_MAX {
                account.charges.pop_front();
            }
            Ok::<_, Error>(to_json(&account))
        })
        .await?;
    let account = read(record.read().await?.as_ref())?;
    let balance = account.balance_after(key);
    Ok(to_json(
        &serde_json::json!({ "account": charge.account, "amount": charge.amount, "balance": balance }),
    ))
}

impl Account {
    fn balance_after(&self, key: &str) -> Option<i64> {
        self.charges.iter().find(|(known, _)| known == key).map(|(_, balance)| *balance)
    }
}

async fn balance(locks: &Locks, account: &str) -> Result<Response<Full<Bytes>>, Error> {
    let record = locks.versioned(format!("accounts/{account}")).read().await?;
    let account = read(record.as_ref())?;
    Ok(json(StatusCode::OK, to_json(&serde_json::json!({ "balance": account.balance }))))
}

fn read(record: Option<&Record>) -> Result<Account, Error> {
    let Some(record) = record else { return Ok(Account::default()) };
    serde_json::from_slice(&record.value)
        .map_err(|error| Error::new(ErrorKind::Corrupt, "this record is no account").because(error))
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("what we keep has string keys and whole numbers").into()
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header's value"));
    response
}

fn says(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, to_json(&serde_json::json!({ "message": message })))
}

/// Hangs for ever, where the environment says so.
async fn pause(place: &str) {
    if env::var("PAUSE").is_ok_and(|chosen| chosen == place) {
        println!("paused");
        pending::<()>().await;
    }
}
