//! The members of the cluster: one of them is spoken to, and the next one when it does not answer.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use ringfence_core::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder, HEADER_SIZE};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::checks;
use crate::error;
use crate::proto::{AuthenticateRequest, AuthenticateResponse, StatusRequest, StatusResponse};

/// How long a member may take to accept a connection, and then to say how it is, before the next one is tried.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// How long a member may take to answer.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// The largest answer that is taken: as large as etcd's own client takes.
const ANSWER_MAX: usize = i32::MAX as usize;

/// One member, as the URL names it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) address: String,
}

/// Who we are to the cluster.
pub(crate) struct Login {
    name: String,
    password: String,
}

impl Login {
    pub(crate) fn new(name: &str, password: &str) -> Self {
        Self { name: name.to_owned(), password: password.to_owned() }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.name)
    }
}

/// The members, and the connection to one of them.
#[derive(Debug)]
pub(crate) struct Servers {
    members: Vec<Member>,
    login: Option<Login>,
    shown: String,
    current: Mutex<Current>,
    /// Held by whoever connects, so that the others wait for that connection.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Current {
    link: Option<Arc<Link>>,
    /// Whether there ever was one.
    has_connected: bool,
    /// Which cluster it was with. Zero: nobody has said so.
    cluster: u64,
    /// Which member to try next.
    next: usize,
}

/// A connection to one member.
#[derive(Debug)]
pub(crate) struct Link {
    channel: Channel,
    pub(crate) address: String,
    /// Which cluster the member says it is of. Zero: it does not.
    cluster: u64,
    /// What shows who we are, where the cluster wants to know.
    token: Option<MetadataValue<Ascii>>,
    /// Becomes true when the connection is given up.
    left: watch::Sender<bool>,
}

impl Servers {
    pub(crate) fn new(members: Vec<Member>, login: Option<Login>, shown: String) -> Self {
        Self { members, login, shown, current: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    /// The URL as it may be shown.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Asks the member at hand. Effects are unknown where it does not answer.
    pub(crate) async fn call<A: Message + Default + 'static>(
        &self,
        path: &'static str,
        question: &impl Message,
    ) -> Result<A> {
        let question = Bytes::from(question.encode_to_vec());
        self.with_link(ANSWER_PATIENCE, |link| {
            let question = question.clone();
            async move { link.ask(path, question).await }
        })
        .await
    }

    /// Has something done on a connection, and once more where the cluster has forgotten who we are, because that was not done.
    pub(crate) async fn with_link<A, F>(&self, patience: Duration, act: impl Fn(Arc<Link>) -> F) -> Result<A>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let ends = tokio::time::sleep(patience);
        tokio::pin!(ends);
        let mut is_known_again = false;
        loop {
            let link = tokio::select! {
                biased;
                link = self.link() => link?,
                () = &mut ends => return Err(error::no_connection_in_time(&self.shown)),
            };
            let outcome = tokio::select! {
                biased;
                // Apart, so that whoever asks is no larger for it.
                outcome = Box::pin(act(Arc::clone(&link))) => outcome,
                () = &mut ends => {
                    self.leave(&link);
                    return Err(error::no_answer(&link.address).with_unknown_effect());
                }
            };
            let status = match outcome {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let is_forgotten = error::is_forgotten_login(&status);
            if is_forgotten || error::is_of_member(&status) {
                self.leave(&link);
            }
            if is_forgotten && self.login.is_some() && !is_known_again {
                is_known_again = true;
                continue;
            }
            return Err(error::of_call(&status, &link.address));
        }
    }

    /// Whether we would say who we are, and the member at hand asks nobody.
    pub(crate) fn has_no_use_for_our_login(&self) -> bool {
        self.login.is_some() && self.current().link.as_ref().is_some_and(|link| link.token.is_none())
    }

    /// Asks every member, by a connection of its own.
    pub(crate) async fn call_each<A: Message + Default + 'static>(
        &self,
        path: &'static str,
        question: &impl Message,
    ) -> Vec<(&str, Result<A>)> {
        let question = Bytes::from(question.encode_to_vec());
        let mut answers = Vec::new();
        for member in &self.members {
            let asked = async {
                let link = self.connect(member).await?;
                let answer = tokio::time::timeout(ANSWER_PATIENCE, link.ask(path, question.clone())).await;
                answer
                    .map_err(|_| error::no_answer(&member.address))?
                    .map_err(|status| error::of_call(&status, &member.address))
            };
            answers.push((&*member.address, asked.await));
        }
        answers
    }

    /// The connection at hand, or a new one.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        if let Some(link) = &self.current().link {
            return Ok(Arc::clone(link));
        }
        Box::pin(self.new_link()).await
    }

    async fn new_link(&self) -> Result<Arc<Link>> {
        let _connecting = self.connecting.lock().await;
        if let Some(link) = &self.current().link {
            return Ok(Arc::clone(link));
        }
        let has_connected = self.current().has_connected;
        if let ([member], true) = (&*self.members, has_connected) {
            // How it is matters where another one could serve in its place.
            return Ok(self.use_from_now_on(self.connect(member).await?));
        }
        let (mut trouble, mut spare) = (None, None);
        for remaining in (0..self.members.len()).rev() {
            let member = {
                let mut current = self.current();
                let member = &self.members[current.next % self.members.len()];
                // Whoever runs out of patience with it leaves the next one to the next caller.
                current.next = (current.next + 1) % self.members.len();
                member
            };
            // There is no other one to hurry to.
            let patience = if remaining == 0 { ANSWER_PATIENCE } else { CONNECT_PATIENCE };
            let error = match self.try_to_connect(member, patience).await {
                Ok((link, true)) => match self.logged_in(member, link).await {
                    Ok(link) => match self.of_one_cluster(link) {
                        Ok(link) => return Ok(self.use_from_now_on(link)),
                        Err(error) => error,
                    },
                    // So would the others.
                    Err(error) if error.kind() != ErrorKind::Unavailable => return Err(error),
                    Err(error) => error,
                },
                Ok((link, false)) => {
                    spare.get_or_insert((member, link));
                    continue;
                }
                Err(error) => error,
            };
            tracing::debug!(%error, "a member cannot be used");
            // At first it is more to the point that one is not as it should be; later, that another one is away for a while.
            if trouble.is_none() || (error.kind() == ErrorKind::Unavailable) == has_connected {
                trouble = Some(error);
            }
        }
        if let Some((member, link)) = spare {
            // None serves now, as in an election. What it is asked may still be done when that is over.
            let link = self.of_one_cluster(self.logged_in(member, link).await?)?;
            return Ok(self.use_from_now_on(link));
        }
        Err(trouble.unwrap_or_else(|| Error::new(ErrorKind::Bug, "a URL without members was accepted")))
    }

    /// Errors for a member of another cluster than those before it: what is held there nobody sees here, and would grant it again.
    fn of_one_cluster(&self, link: Link) -> Result<Link> {
        let known = self.current().cluster;
        if known == 0 || link.cluster == 0 || link.cluster == known {
            return Ok(link);
        }
        let error = error::of_another_cluster(&link.address);
        tracing::warn!(%error, "a member of the URL is not used");
        Err(error)
    }

    fn use_from_now_on(&self, link: Link) -> Arc<Link> {
        let link = Arc::new(link);
        let mut current = self.current();
        if current.cluster == 0 {
            current.cluster = link.cluster;
        }
        current.link = Some(Arc::clone(&link));
        current.has_connected = true;
        link
    }

    /// A connection to a member, and whether it serves. That a connection opens says little: whatever stands before a member that is
    /// dead or stopped, a proxy or its kernel, accepts one for it.
    async fn try_to_connect(&self, member: &Member, patience: Duration) -> Result<(Link, bool)> {
        let mut link = open(member).await?;
        let asked = link.ask(checks::STATUS, Bytes::from(StatusRequest {}.encode_to_vec()));
        let answer = tokio::time::timeout(patience, asked).await;
        let status: StatusResponse = match answer.map_err(|_| error::no_answer(&member.address))? {
            Ok(status) => status,
            // It lets nobody ask who has not logged in, and so it answers.
            Err(status) if !error::is_of_member(&status) => return Ok((link, true)),
            Err(status) => return Err(error::of_call(&status, &member.address).without_effect()),
        };
        checks::refuse_what_is_too_old(&status, &self.shown)?;
        link.cluster = checks::cluster(&status);
        Ok((link, checks::serves(&status)))
    }

    async fn connect(&self, member: &Member) -> Result<Link> {
        self.logged_in(member, open(member).await?).await
    }

    async fn logged_in(&self, member: &Member, mut link: Link) -> Result<Link> {
        if let Some(Login { name, password }) = &self.login {
            let question = AuthenticateRequest { name: name.clone(), password: password.clone() };
            let asked = link.ask("/etcdserverpb.Auth/Authenticate", Bytes::from(question.encode_to_vec()));
            let answer = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
            let answer: Result<AuthenticateResponse, Status> =
                answer.map_err(|_| error::no_answer(&member.address))?;
            link.token = match answer {
                Ok(answer) => {
                    // It may have let nobody ask before.
                    link.cluster = answer.header.map_or(link.cluster, |header| header.cluster_id);
                    answer.token.parse().ok().map(|mut token: MetadataValue<Ascii>| {
                        // Whoever has it is us: it is not shown where a connection is.
                        token.set_sensitive(true);
                        token
                    })
                }
                // Its authentication may be off for a while, in which nobody is to lose anything. When it asks, we log in.
                Err(status) if error::asks_nobody(&status) => {
                    let advice = "its authentication is off, and whoever reaches it may change our locks: our password is of no use";
                    tracing::warn!(member = link.address, advice);
                    None
                }
                Err(status) => return Err(error::of_login(&status, &member.address)),
            };
        }
        Ok(link)
    }

    /// Gives a connection up: the next call goes to the next member.
    pub(crate) fn leave(&self, link: &Arc<Link>) {
        let mut current = self.current();
        if current.link.as_ref().is_some_and(|present| Arc::ptr_eq(present, link)) {
            current.link = None;
        }
        drop(current);
        link.left.send_replace(true);
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(member: &Member) -> Result<Link> {
    let connected = tokio::time::timeout(CONNECT_PATIENCE, member.endpoint.connect()).await;
    let channel = connected
        .map_err(|_| error::no_answer(&member.address))?
        .map_err(|error| error::of_connecting(&error, &member.address))?;
    let (address, left) = (member.address.clone(), watch::Sender::new(false));
    Ok(Link { channel, address, cluster: 0, token: None, left })
}

impl Link {
    /// A question, as it is sent, with one answer.
    async fn ask<A: Message + Default + 'static>(
        &self,
        path: &'static str,
        question: Bytes,
    ) -> Result<A, Status> {
        let mut grpc = self.ready().await?;
        let codec = Encoded { length: question.len(), answer: PhantomData };
        let answer = grpc.unary(self.dressed(question), PathAndQuery::from_static(path), codec).await?;
        Ok(answer.into_inner())
    }

    /// Questions with answers, both as they come. Returns when the first answer begins.
    pub(crate) async fn converse<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        path: &'static str,
        questions: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status> {
        let mut grpc = self.ready().await?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answers = grpc.streaming(self.dressed(questions), PathAndQuery::from_static(path), codec).await?;
        Ok(answers.into_inner())
    }

    /// Waits until the connection is given up.
    pub(crate) async fn is_left(&self) {
        // The sender lives as long as we do.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX);
        grpc.ready().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        Ok(grpc)
    }

    fn dressed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// Sends a question that is encoded already: the same bytes may have to be sent again, and what many share is not written twice.
struct Encoded<A> {
    length: usize,
    answer: PhantomData<A>,
}

impl<A: Message + Default + 'static> Codec for Encoded<A> {
    type Encode = Bytes;
    type Decode = A;
    type Encoder = EncodedWriter;
    type Decoder = ProstDecoder<A>;

    fn encoder(&mut self) -> EncodedWriter {
        EncodedWriter { length: self.length }
    }

    fn decoder(&mut self) -> ProstDecoder<A> {
        ProstDecoder::default()
    }
}

struct EncodedWriter {
    length: usize,
}

impl Encoder for EncodedWriter {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, question: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(question);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        let whole = HEADER_SIZE + self.length;
        BufferSettings::new(whole, whole)
    }
}
