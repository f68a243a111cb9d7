//! The tables that a backup has, with the columns of each. A test holds this list against the schema, so that a migration
//! cannot add what no backup would have.

/// A table, as a backup has it.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub name: &'static str,
    /// The columns that its rows are in the order of.
    pub(super) key: &'static str,
    /// The names of its columns, each with a mark: `#` for a number, `*` for bytes, none for text.
    columns: &'static str,
    /// Whether migrations put a row there, which a restoration puts another in the place of.
    pub(super) is_seeded: bool,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bytes,
    Number,
    Text,
}

impl Table {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }

    /// The names of its columns.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.kinds().map(|(name, _)| name)
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = (&'static str, Kind)> {
        self.columns.split(' ').map(|column| match (column.strip_suffix('#'), column.strip_suffix('*')) {
            (Some(name), _) => (name, Kind::Number),
            (_, Some(name)) => (name, Kind::Bytes),
            _ => (column, Kind::Text),
        })
    }
}

const fn table(name: &'static str, key: &'static str, columns: &'static str) -> Table {
    Table { name, key, columns, is_seeded: false }
}

const fn seeded(name: &'static str, key: &'static str, columns: &'static str) -> Table {
    Table { name, key, columns, is_seeded: true }
}

/// Tables of the database that no backup has: what migrations were applied, and what this database knows of its backups.
#[cfg(test)]
pub(super) const LEFT_OUT: &[&str] = &["_sqlx_migrations", "backup_schedule"];

/// In the order in which they can be filled: what is referred to comes first.
pub const TABLES: &[Table] = &[
    table(
        "cluster",
        "id",
        "id# cluster_id seal_epoch# sealed_by_hand_at# created_at# root_version# kek_version#",
    ),
    table("vault_slots", "id", "id kind params wrapped_root* kcv* created_at# removed_at#"),
    table("vault_keks", "version", "version# wrapped* state created_at# retired_at#"),
    table(
        "kek_rotations",
        "id",
        "id kek_version# state key_cursor webhook_cursor total# done# damaged due_at# lease_owner lease_until# \
         contributor_id token_id started_at# ended_at#",
    ),
    table(
        "signing_keys",
        "id",
        "id purpose cache_id name version# public_key* sealed* kek_version# state imported_at# created_at#",
    ),
    table(
        "caches",
        "id",
        "id name visibility priority# prefix upstream_paths undeclared_references created_at# deleted_at#",
    ),
    table("key_successions", "id", "id cache_id seq# note created_at#"),
    table("key_roots", "id", "id scope version# note created_at#"),
    table(
        "key_rotations",
        "id",
        "id cache_id kind old_key_id new_key_id step step_since# steps publish_days# wait_days# log_cursor# \
         realisation_cursor total# done# refused# paused_at# lease_owner lease_until# contributor_id token_id \
         reason started_at# ended_at#",
    ),
    table("unlogged_signatures", "id", "id cache_id key_name place subject signature found_at#"),
    table("upstreams", "cache_id position", "cache_id position# url public_keys"),
    table("contributors", "id", "id name kind group_name suspended_at# created_at# erased_at#"),
    table("contributor_keys", "id", "id contributor_id name public_key* created_at# removed_at#"),
    table(
        "tokens",
        "id",
        "id contributor_id scopes issued_by key_id note created_at# expires_at# renewable_until# revoked_at# \
         revoke_reason",
    ),
    table("token_uses", "token_id", "token_id last_used_at#"),
    table("admin_claims", "id", "id secret_sha256* contributor_name created_at# expires_at# spent_at#"),
    seeded("change_epoch", "id", "id# epoch#"),
    table(
        "measured",
        "id",
        "id cache_id file_hash ext state generation# compression file_size# nar_hash nar_size# found_refs \
         found_refs_truncated_at# single_file_sha256 single_file_executable# token_id stored_at# deleting_until#",
    ),
    table("paths", "id", "id cache_id hash state claim_id published_at# changed_at#"),
    table(
        "claims",
        "id",
        "id path_id claim_sha256 store_path nar_hash nar_size# refs file_hash ext compression file_size# deriver ca \
         ca_dropped undeclared_refs unfound_refs created_at#",
    ),
    table("path_refs", "claim_id ref_hash", "claim_id ref_hash"),
    table("signatures", "claim_id key_name", "claim_id key_name sig* leaf#"),
    table("evidence", "id", "id claim_id source_kind source_id token_id at# void_by"),
    table(
        "conflicts",
        "id",
        "id path_id standing_claim_id claim_sha256 nar_hash refs contributor_id token_id at#",
    ),
    table(
        "auxiliary",
        "id",
        "id cache_id kind name subject body* contributor_id token_id stored_at# visible_at#",
    ),
    table(
        "realisations",
        "id",
        "id cache_id object output_hash body signatures contributor_id token_id created_at# void_by",
    ),
    seeded(
        "log_state",
        "id",
        "id# size# frontier* frontier_size# published_beyond# rolled_back_to# forked_what forked_at#",
    ),
    table("log_leaves", "idx", "idx# event leaf path_id"),
    table("log_openings", "idx part", "idx# part salt* text"),
    table("log_references", "digest", "digest refs"),
    table("log_checkpoint", "id", "id# size# note signed_at# references_to#"),
    table(
        "outbox",
        "object",
        "object kind cache_id subject generation# not_before# lease_owner lease_until# redo_at# attempts# enqueued_at#",
    ),
    table(
        "audit",
        "id",
        "id at# action outcome contributor_id token_id subject address client request_id detail commit_seq# salt \
         commitment erased_at#",
    ),
    table("audit_commits", "seq", "seq# leaf# row_count# head at#"),
    table(
        "uploads",
        "id",
        "id cache_id contributor_id nar_hash compression part_size# stage closed_at# created_at# expires_at#",
    ),
    table("upload_parts", "upload_id number", "upload_id number# size# sha256 tag"),
    table(
        "upstream_paths",
        "cache_id hash",
        "cache_id hash store_path nar_hash nar_size# refs upstream_url key_name sig* checked_at#",
    ),
    table(
        "quarantines",
        "id",
        "id subject_kind subject_id subject since# reason keep_issued_at# dependents_at# contributor_id token_id \
         begun_at# advanced_at# tokens_dead_at# done_at# restoring_at# restore_reason restorer_contributor_id \
         restorer_token_id restored_at#",
    ),
    table("withdrawals", "id", "id quarantine_id cache_id path_id claim_id cause at# ended_at# ended_how"),
    table(
        "withdrawn_auxiliary",
        "id",
        "id claim_id cache_id kind name subject body* contributor_id token_id stored_at# visible_at#",
    ),
    table(
        "webhooks",
        "id",
        "id url events note sealed* kek_version# paused_at# removed_at# dropped# created_at#",
    ),
    table("webhook_events", "id", "id kind payload at#"),
    table(
        "webhook_deliveries",
        "id",
        "id webhook_id event_id state attempts# not_before# lease_owner lease_until# attempted_at# status# error \
         created_at# finished_at#",
    ),
];
