//! narvault: a key management service for Nix binary caches.

#![deny(unsafe_code)]

pub mod access;
pub mod api;
pub mod client;
pub mod config;
pub mod db;
pub mod http;
pub mod nix;
pub mod service;
pub mod storage;
pub mod time;
pub mod tlog;
pub mod vault;
pub mod web;
