//! A call: who asks, and from where.

use std::net::IpAddr;

use crate::access::Caller;

/// Where a call comes from. Kept in audit rows and in the erasable part of leaves.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub address: Option<IpAddr>,
    /// The client's own word for itself, cut to a stated length by whoever reads it from the wire.
    pub client: Option<String>,
    /// Names the request in the server's log.
    pub request_id: Option<String>,
}

/// Who asks, and from where: the first thing that every operation looks at.
#[derive(Debug, Clone)]
pub struct Call {
    pub caller: Caller,
    pub origin: Origin,
}

impl Call {
    /// A call by the operator on the server's host.
    pub fn host() -> Self {
        Self { caller: Caller::Host, origin: Origin::default() }
    }
}
