//! `narvault cache`: binary caches.

use clap::{Args, Subcommand, ValueEnum};

use super::Context;
use super::args::{ListArgs, UpstreamArg, gather_upstreams};
use super::ask::{self, Unattended};
use super::failure::Failure;
use super::list::print_list;
use super::text::{Fields, moment, size};
use crate::api::{
    CacheCreate, CacheDeleteQuery, CacheEdit, CacheView, UndeclaredReferences, Upstream, UpstreamPaths,
};

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Create a cache; it signs nothing before `narvault key create`
    Create(CreateArgs),
    /// List the caches
    List(CacheListArgs),
    /// Show one cache: keys to trust, addresses, settings
    Show(ShowArgs),
    /// Change a cache's settings
    Edit(EditArgs),
    /// Delete a cache; its name is never given again
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault cache create main --public")]
pub struct CreateArgs {
    /// Lower-case letters, digits and `-`, at most 63
    name: String,
    #[command(flatten)]
    visibility: VisibilityArgs,
    /// Folder in the bucket [default: the cache's name]
    #[arg(long, value_name = "FOLDER")]
    prefix: Option<String>,
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault cache list")]
pub struct CacheListArgs {
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault cache show main")]
pub struct ShowArgs {
    /// The cache's name
    name: String,
}

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("change").required(true).multiple(true),
    after_help = "Example:\n  narvault cache edit main --priority 30"
)]
pub struct EditArgs {
    /// The cache's name
    name: String,
    #[command(flatten)]
    visibility: VisibilityArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault cache delete scratch --purge --yes")]
pub struct DeleteArgs {
    /// The cache's name
    name: String,
    /// Delete every path in it too
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[group(skip)]
struct VisibilityArgs {
    /// Anyone may pull without a token
    #[arg(long, group = "change", conflicts_with = "private")]
    public: bool,
    /// Only tokens with `pull` may pull; what a new cache is unless told
    #[arg(long, group = "change")]
    private: bool,
}

#[derive(Debug, Args)]
#[group(skip)]
struct SettingArgs {
    /// Lower is asked earlier by Nix; cache.nixos.org has 40, a new cache 41
    #[arg(long, value_name = "N", group = "change")]
    priority: Option<u32>,
    /// An upstream and a key of it, once for each; replaces the default (cache.nixos.org) or those there are
    #[arg(long = "upstream", value_name = "URL=KEY", group = "change")]
    upstreams: Vec<UpstreamArg>,
    /// No upstream at all
    #[arg(long, conflicts_with = "upstreams", group = "change")]
    no_upstreams: bool,
    /// Paths that an upstream has: store them here too, or skip them
    #[arg(long, value_enum, value_name = "HOW", group = "change")]
    upstream_paths: Option<UpstreamPathsArg>,
    /// A store path found in an archive but not claimed as a reference: record it, or refuse the path
    #[arg(long, value_enum, value_name = "HOW", group = "change")]
    undeclared_references: Option<UndeclaredReferencesArg>,
}

impl SettingArgs {
    fn upstreams(&self) -> Option<Vec<Upstream>> {
        (self.no_upstreams || !self.upstreams.is_empty()).then(|| gather_upstreams(&self.upstreams))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UpstreamPathsArg {
    Store,
    Skip,
}

impl From<UpstreamPathsArg> for UpstreamPaths {
    fn from(arg: UpstreamPathsArg) -> Self {
        match arg {
            UpstreamPathsArg::Store => Self::Store,
            UpstreamPathsArg::Skip => Self::Skip,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UndeclaredReferencesArg {
    Record,
    Refuse,
}

impl From<UndeclaredReferencesArg> for UndeclaredReferences {
    fn from(arg: UndeclaredReferencesArg) -> Self {
        match arg {
            UndeclaredReferencesArg::Record => Self::Record,
            UndeclaredReferencesArg::Refuse => Self::Refuse,
        }
    }
}

pub async fn run(command: CacheCommand, context: &Context) -> Result<(), Failure> {
    match command {
        CacheCommand::Create(args) => create(args, context).await,
        CacheCommand::List(args) => list(args, context).await,
        CacheCommand::Show(args) => show(args, context).await,
        CacheCommand::Edit(args) => edit(args, context).await,
        CacheCommand::Delete(args) => delete(args, context).await,
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let body = CacheCreate {
        name: args.name,
        // What was not asked for is not shown to everybody.
        public: args.visibility.public,
        priority: args.settings.priority,
        prefix: args.prefix,
        upstreams: args.settings.upstreams(),
        upstream_paths: args.settings.upstream_paths.map(Into::into),
        undeclared_references: args.settings.undeclared_references.map(Into::into),
    };
    let cache = context.client()?.cache_create(&body).await?;
    context.printer.answer(&cache, fields)?;
    context.printer.note(&format!("hint: run `narvault key create {}`, so that it can sign", cache.name));
    Ok(())
}

async fn list(args: CacheListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let row = |cache: &CacheView| {
        vec![
            cache.name.clone(),
            visibility(cache).to_owned(),
            cache.paths.to_string(),
            size(cache.bytes),
            cache.pull_url.clone(),
        ]
    };
    let columns = ["NAME", "PULL", "PATHS", "SIZE", "URL"];
    print_list(context.printer, &args.list, &columns, row, async |query| client.caches(&query).await).await
}

async fn show(args: ShowArgs, context: &Context) -> Result<(), Failure> {
    let cache = context.client()?.cache(&args.name).await?;
    context.printer.answer(&cache, fields)
}

async fn edit(args: EditArgs, context: &Context) -> Result<(), Failure> {
    let body = CacheEdit {
        public: (args.visibility.public || args.visibility.private).then_some(args.visibility.public),
        priority: args.settings.priority,
        upstreams: args.settings.upstreams(),
        upstream_paths: args.settings.upstream_paths.map(Into::into),
        undeclared_references: args.settings.undeclared_references.map(Into::into),
    };
    let cache = context.client()?.cache_edit(&args.name, &body).await?;
    context.printer.answer(&cache, fields)
}

async fn delete(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let with = if args.purge { " with every path in it" } else { "" };
    ask::confirm(&format!("Delete the cache `{}`{with}?", args.name), args.yes, Unattended::Refuse)?;
    client.cache_delete(&args.name, &CacheDeleteQuery { purge: args.purge }).await?;
    context.printer.note(&format!("deleted the cache {}", args.name));
    Ok(())
}

fn visibility(cache: &CacheView) -> &'static str {
    if cache.public { "public" } else { "private" }
}

fn fields(cache: &CacheView) -> String {
    let upstreams = cache
        .upstreams
        .iter()
        .flat_map(|upstream| upstream.public_keys.iter().map(|key| format!("{} {key}", upstream.url)));
    let upstream_paths = match cache.upstream_paths {
        UpstreamPaths::Store => "store",
        UpstreamPaths::Skip => "skip",
    };
    let undeclared_references = match cache.undeclared_references {
        UndeclaredReferences::Record => "record",
        UndeclaredReferences::Refuse => "refuse",
    };
    Fields::default()
        .with("name", &cache.name)
        .with("pull", visibility(cache))
        .with("pull URL", &cache.pull_url)
        .with("push URL", &cache.push_url)
        .with_all("public keys", cache.public_keys.clone())
        .with("priority", cache.priority)
        .with("prefix", &cache.prefix)
        .with_all("upstreams", upstreams)
        .with("upstream paths", upstream_paths)
        .with("undeclared references", undeclared_references)
        .with("paths", cache.paths)
        .with("size", size(cache.bytes))
        .with("created", moment(&cache.created_at))
        .text()
}
