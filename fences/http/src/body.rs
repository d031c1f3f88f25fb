//! Bodies that end when their request is cut, and that keep its pass until they are dropped.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::gate::Pass;

/// What goes wrong with a body.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// A body of a request that has passed the gate, or of its answer. It fails when the request is cut.
    pub struct PassedBody<B> {
        // The order of the fields is that of their drop: a connection goes before the pass that says that it is gone.
        #[pin]
        body: B,
        // Made only where there is something to wait for.
        cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        pass: Pass,
    }
}

impl<B> PassedBody<B> {
    pub(crate) fn new(body: B, pass: Pass) -> Self {
        Self { body, cut: None, pass }
    }
}

impl<B: Body> Body for PassedBody<B>
where
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        if !this.pass.is_cut() {
            if let Poll::Ready(frame) = this.body.poll_frame(cx) {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            ready!(this.cut.get_or_insert_with(|| Box::pin(this.pass.cut())).as_mut().poll(cx));
        }
        Poll::Ready(Some(Err(Cut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for PassedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassedBody").field("pass", &self.pass).finish_non_exhaustive()
    }
}

/// The error of a body whose request was cut.
#[derive(Clone, Copy, Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was cut for a later token or for another gate")
    }
}

impl std::error::Error for Cut {}

pin_project! {
    /// The body of an answer: the resource's, or the gate's own.
    #[derive(Debug)]
    pub struct FencedBody<B> {
        #[pin]
        answer: Answer<B>,
    }
}

pin_project! {
    #[project = AnswerProj]
    #[derive(Debug)]
    enum Answer<B> {
        Passed { #[pin] body: PassedBody<B> },
        Refused { body: Option<Bytes> },
    }
}

impl<B> FencedBody<B> {
    pub(crate) fn passed(body: B, pass: Pass) -> Self {
        Self { answer: Answer::Passed { body: PassedBody::new(body, pass) } }
    }

    pub(crate) fn refused(body: Bytes) -> Self {
        Self { answer: Answer::Refused { body: Some(body) } }
    }
}

impl<B: Body<Data = Bytes>> Body for FencedBody<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().answer.project() {
            AnswerProj::Passed { body } => body.poll_frame(cx),
            AnswerProj::Refused { body } => Poll::Ready(body.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.answer {
            Answer::Passed { body } => body.is_end_stream(),
            Answer::Refused { body } => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Passed { body } => body.size_hint(),
            Answer::Refused { body } => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
