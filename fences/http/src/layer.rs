//! The gate as a layer of tower, for servers in Rust.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{FencedBody, PassedBody};
use crate::gate::Gate;
use crate::refusal::Refusal;

/// Puts a [`Gate`] before a service: a route of axum, or any other over `http` 1. Clones share the gate.
///
/// A handler finds the [`TokenHeader`](crate::TokenHeader) of a request that has passed among its extensions. It should compare the name with
/// what it is about to change: the gate knows only which lock the client speaks of.
///
/// A request is under way until its body and the body of its answer are done with. One that is cut is dropped; if its answer has
/// not begun, that is 412.
#[derive(Clone, Debug)]
pub struct FenceLayer {
    gate: Arc<Gate>,
}

impl FenceLayer {
    /// A layer of this gate.
    pub fn new(gate: impl Into<Arc<Gate>>) -> Self {
        Self { gate: gate.into() }
    }
}

impl<S> Layer<S> for FenceLayer {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced { gate: Arc::clone(&self.gate), inner }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S, B, A> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<PassedBody<B>>, Response = Response<A>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    A: Body<Data = Bytes>,
{
    type Response = Response<FencedBody<A>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    /// Always ready: what a request reserves of the service behind the gate it reserves when it has passed.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (gate, mut inner) = (Arc::clone(&self.gate), self.inner.clone());
        Box::pin(async move {
            let refused = |refusal: Refusal| Ok(refusal.into_response().map(FencedBody::refused));
            let header = Gate::header(request.headers());
            let admitted = async {
                let header = header?;
                Ok::<_, Refusal>((gate.admit_holder(&header).await?, header))
            };
            let (pass, header) = match admitted.await {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    tracing::debug!(error = refusal.error(), "a request was refused");
                    return refused(refusal);
                }
            };
            request.extensions_mut().insert(header);
            let request = request.map(|body| PassedBody::new(body, pass.clone()));
            let answer = async {
                poll_fn(|cx| inner.poll_ready(cx)).await?;
                inner.call(request).await
            };
            tokio::select! {
                biased;
                () = pass.cut() => refused(Refusal::cut(pass.token())),
                answer = answer => Ok(answer?.map(|body| FencedBody::passed(body, pass))),
            }
        })
    }
}
