//! What transactions are made of.

use crate::keys::Range;
use crate::proto::range_request::{SortOrder, SortTarget};
use crate::proto::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest,
    TxnResponse, compare, request_op, response_op,
};

/// `key` was created at this revision, and not since; at zero, it is not there.
pub(crate) fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        target: compare::Target::Create.into(),
        key: key.to_vec(),
        target_union: Some(compare::TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

/// `key` as it was created at this revision is not there any more.
pub(crate) fn is_gone(key: &[u8], created: i64) -> Compare {
    Compare { result: compare::Result::NotEqual.into(), ..created_at(key, created) }
}

/// `key` was last changed at this revision; at zero, it is not there.
pub(crate) fn changed_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        target: compare::Target::Mod.into(),
        key: key.to_vec(),
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        ..Compare::default()
    }
}

/// There is no key in the range.
pub(crate) fn is_empty(range: &Range) -> Compare {
    Compare { range_end: range.end.clone(), ..created_at(&range.begin, 0) }
}

/// No key in the range was created before this revision.
pub(crate) fn is_first(range: &Range, revision: i64) -> Compare {
    let result = compare::Result::Greater.into();
    Compare { result, range_end: range.end.clone(), ..created_at(&range.begin, revision - 1) }
}

pub(crate) fn put(key: &[u8], value: Vec<u8>, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.to_vec(), value, lease, ..PutRequest::default() };
    RequestOp { request: Some(request_op::Request::Put(put)) }
}

/// Has another lease end the key's life.
pub(crate) fn move_to(key: &[u8], lease: i64) -> RequestOp {
    let put = PutRequest { key: key.to_vec(), lease, ignore_value: true, ..PutRequest::default() };
    RequestOp { request: Some(request_op::Request::Put(put)) }
}

/// Changes nothing of a key but the revision at which it was last changed.
pub(crate) fn touch(key: &[u8]) -> RequestOp {
    let put =
        PutRequest { key: key.to_vec(), ignore_value: true, ignore_lease: true, ..PutRequest::default() };
    RequestOp { request: Some(request_op::Request::Put(put)) }
}

pub(crate) fn delete(key: &[u8]) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Delete(DeleteRangeRequest { key: key.to_vec() })) }
}

pub(crate) fn get(key: &[u8]) -> RangeRequest {
    RangeRequest { key: key.to_vec(), ..RangeRequest::default() }
}

pub(crate) fn get_range(range: &Range) -> RangeRequest {
    RangeRequest { key: range.begin.clone(), range_end: range.end.clone(), ..RangeRequest::default() }
}

/// The same, the oldest first.
pub(crate) fn oldest_first(range: RangeRequest) -> RangeRequest {
    RangeRequest { sort_order: SortOrder::Ascend.into(), sort_target: SortTarget::Create.into(), ..range }
}

/// The same, the youngest first.
pub(crate) fn youngest_first(range: RangeRequest) -> RangeRequest {
    RangeRequest { sort_order: SortOrder::Descend.into(), sort_target: SortTarget::Create.into(), ..range }
}

pub(crate) fn range(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Range(range)) }
}

pub(crate) fn txn(txn: TxnRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Txn(txn)) }
}

/// What a transaction's range found.
pub(crate) fn found(answer: &TxnResponse, index: usize) -> Option<&RangeResponse> {
    match answer.responses.get(index)? {
        ResponseOp { response: Some(response_op::Response::Range(found)) } => Some(found),
        _ => None,
    }
}

/// How many keys a transaction's deletion deleted.
pub(crate) fn deleted(answer: &TxnResponse, index: usize) -> Option<i64> {
    match answer.responses.get(index)? {
        ResponseOp { response: Some(response_op::Response::Delete(deleted)) } => Some(deleted.deleted),
        _ => None,
    }
}

/// The transaction that an operation is.
pub(crate) fn into_txn(operation: RequestOp) -> Option<TxnRequest> {
    match operation.request? {
        request_op::Request::Txn(txn) => Some(txn),
        _ => None,
    }
}

/// What a transaction within a transaction answered.
pub(crate) fn into_nested(response: ResponseOp) -> Option<TxnResponse> {
    match response.response? {
        response_op::Response::Txn(nested) => Some(nested),
        _ => None,
    }
}

/// The transaction within a transaction.
pub(crate) fn nested(answer: &TxnResponse, index: usize) -> Option<&TxnResponse> {
    match answer.responses.get(index)? {
        ResponseOp { response: Some(response_op::Response::Txn(nested)) } => Some(nested),
        _ => None,
    }
}

/// The revision of the store that an answer is about.
pub(crate) fn revision(answer: &TxnResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}
