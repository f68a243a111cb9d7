//! One binary for all integration tests; each file is named after what it promises.

mod api;
mod compose;
mod conflicts;
mod crash;
mod demo;
mod first_run;
mod flow;
mod isolation;
mod metrics;
mod migrations;
mod nix_copy;
mod nix_versions;
mod openapi;
mod outage;
mod push_batches;
mod readme;
mod refusals;
mod replicas;
mod revocation;
mod secrets;
mod slots;
mod storage;
mod support;
mod tidy;
mod upload_order;
mod upstreams;
