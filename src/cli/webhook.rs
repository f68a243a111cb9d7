//! `narvault webhook`: servers that are told what happens.

use clap::{Args, Subcommand};

use super::Context;
use super::args::{ListArgs, OrderArg};
use super::failure::{Exit, Failure};
use super::list::print_list;
use super::text::{Fields, moment, plain};
use crate::api::{
    DeliveryQuery, DeliveryState, DeliveryView, WebhookCreate, WebhookCreated, WebhookEdit, WebhookView,
};

#[derive(Debug, Subcommand)]
pub enum WebhookCommand {
    /// Add a webhook; prints its secret, this once
    Add(WebhookAddArgs),
    /// List the webhooks
    List(WebhookListArgs),
    /// Show one webhook, and how it does
    Show(WebhookShowArgs),
    /// Change where it leads or what it is told, pause it or resume it
    Edit(WebhookEditArgs),
    /// Send a test, once and now
    Test(WebhookTestArgs),
    /// Remove a webhook, with what waits for it
    Remove(WebhookRemoveArgs),
    /// List what was or is to be told to a webhook, newest first unless told
    Deliveries(WebhookDeliveriesArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault webhook add https://hooks.example.org/narvault --event path.conflict --event token.revoked"
)]
pub struct WebhookAddArgs {
    /// Where messages are posted to
    #[arg(value_name = "HOOK-URL")]
    hook_url: String,
    /// Only events of this kind; may be given again
    #[arg(long = "event", value_name = "KIND")]
    events: Vec<String>,
    /// For people
    #[arg(long)]
    note: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault webhook list")]
pub struct WebhookListArgs {
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault webhook show 019aabcd-1234-7abc-8def-0123456789ab")]
pub struct WebhookShowArgs {
    /// The webhook's id
    id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault webhook edit 019aabcd-1234-7abc-8def-0123456789ab --pause")]
pub struct WebhookEditArgs {
    /// The webhook's id
    id: String,
    /// Where messages are posted to from now on
    #[arg(long, value_name = "HOOK-URL")]
    hook_url: Option<String>,
    /// Only events of this kind from now on; may be given again
    #[arg(long = "event", value_name = "KIND")]
    events: Vec<String>,
    /// For people; empty: none
    #[arg(long)]
    note: Option<String>,
    /// Queue nothing for it and send nothing, until `--resume`
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Undo `--pause`
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault webhook test 019aabcd-1234-7abc-8def-0123456789ab")]
pub struct WebhookTestArgs {
    /// The webhook's id
    id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault webhook remove 019aabcd-1234-7abc-8def-0123456789ab")]
pub struct WebhookRemoveArgs {
    /// The webhook's id
    id: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault webhook deliveries 019aabcd-1234-7abc-8def-0123456789ab --state given-up"
)]
pub struct WebhookDeliveriesArgs {
    /// The webhook's id
    id: String,
    /// Only those of this state
    #[arg(long, value_parser = ["waiting", "delivered", "given-up"])]
    state: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(command: WebhookCommand, context: &Context) -> Result<(), Failure> {
    match command {
        WebhookCommand::Add(args) => add(args, context).await,
        WebhookCommand::List(args) => list(args, context).await,
        WebhookCommand::Show(args) => {
            let webhook = context.client()?.webhook(&args.id).await?;
            context.printer.answer(&webhook, fields)
        }
        WebhookCommand::Edit(args) => edit(args, context).await,
        WebhookCommand::Test(args) => test(args, context).await,
        WebhookCommand::Remove(args) => {
            context.client()?.webhook_remove(&args.id).await?;
            context.printer.note(&format!("removed the webhook {}", args.id));
            Ok(())
        }
        WebhookCommand::Deliveries(args) => deliveries(args, context).await,
    }
}

async fn add(args: WebhookAddArgs, context: &Context) -> Result<(), Failure> {
    let events = (!args.events.is_empty()).then_some(args.events);
    let body = WebhookCreate { url: args.hook_url, events, note: args.note };
    let created = context.client()?.webhook_create(&body).await?;
    context.printer.answer(&created, |WebhookCreated { secret, .. }| format!("{}\n", plain(secret)))?;
    let id = &created.webhook.id;
    context
        .printer
        .note(&format!("added the webhook {id}; this secret is shown this once, its receiver needs it"));
    context
        .printer
        .note(&format!("hint: run `narvault webhook test {id}` once the receiver knows the secret"));
    Ok(())
}

async fn list(args: WebhookListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let row = |webhook: &WebhookView| {
        vec![
            webhook.id.clone(),
            state(webhook).to_owned(),
            webhook.waiting.to_string(),
            webhook.given_up.to_string(),
            webhook.delivered_at.as_deref().map_or("-".into(), moment),
            webhook.url.clone(),
        ]
    };
    let columns = ["ID", "STATE", "WAITING", "GIVEN UP", "LAST DELIVERED", "URL"];
    print_list(context.printer, &args.list, &columns, row, async |query| client.webhooks(&query).await).await
}

async fn edit(args: WebhookEditArgs, context: &Context) -> Result<(), Failure> {
    let paused = match (args.pause, args.resume) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let events = (!args.events.is_empty()).then_some(args.events);
    let body = WebhookEdit { url: args.hook_url, events, note: args.note, paused };
    let webhook = context.client()?.webhook_edit(&args.id, &body).await?;
    context.printer.answer(&webhook, fields)
}

async fn test(args: WebhookTestArgs, context: &Context) -> Result<(), Failure> {
    let delivery = context.client()?.webhook_test(&args.id).await?;
    context.printer.answer(&delivery, |delivery| {
        let status = delivery.status.map_or(String::new(), |status| format!(", answered with {status}"));
        format!("{}{status}\n", word(delivery.state))
    })?;
    match delivery.error {
        None => Ok(()),
        Some(error) => Err(Failure::new(Exit::Failure, format!("the receiver did not take it: {error}"))
            .hint(format!("run `narvault webhook show {}` to see where it leads", args.id))),
    }
}

async fn deliveries(args: WebhookDeliveriesArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    // Who looks here wants to know what has just happened.
    let list = ListArgs { order: args.list.order.or(Some(OrderArg::Desc)), ..args.list };
    let row = |delivery: &DeliveryView| {
        vec![
            moment(&delivery.created_at),
            delivery.event.clone(),
            word(delivery.state).to_owned(),
            delivery.attempts.to_string(),
            delivery.next_attempt_at.as_deref().map_or("-".into(), moment),
            delivery.event_id.clone(),
            delivery.error.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    let columns = ["QUEUED", "EVENT", "STATE", "ATTEMPTS", "NEXT", "MESSAGE", "ERROR"];
    print_list(context.printer, &list, &columns, row, async |query| {
        let query = DeliveryQuery {
            state: args.state.clone(),
            cursor: query.cursor,
            limit: query.limit,
            order: query.order,
        };
        client.webhook_deliveries(&args.id, &query).await
    })
    .await
}

fn word(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Delivered => "delivered",
        DeliveryState::GivenUp => "given-up",
        DeliveryState::Waiting => "waiting",
    }
}

fn state(webhook: &WebhookView) -> &'static str {
    match (webhook.paused, &webhook.failing_since) {
        (true, _) => "paused",
        (false, Some(_)) => "failing",
        (false, None) => "active",
    }
}

fn fields(webhook: &WebhookView) -> String {
    Fields::default()
        .with("id", &webhook.id)
        .with("url", &webhook.url)
        .with_all("events", webhook.events.clone())
        .with_some("note", webhook.note.as_ref())
        .with("state", state(webhook))
        .with("waiting", webhook.waiting)
        .with("given up", webhook.given_up)
        .with("dropped", webhook.dropped)
        .with_some("last delivered", webhook.delivered_at.as_deref().map(moment))
        .with_some("failing since", webhook.failing_since.as_deref().map(moment))
        .with("created", moment(&webhook.created_at))
        .text()
}
