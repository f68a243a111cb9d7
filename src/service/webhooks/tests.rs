use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::ExposeSecret as _;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::access::TokenText;
use crate::db::testing::{TestDb, on_each_database};
use crate::service::keys::KeySource;
use crate::service::testing::{Sample, TestService};
use crate::service::{ContributorChange, FIRST_CACHE, QuarantineRequest, TakedownTarget, Unseal};

/// What a receiver got.
#[derive(Debug, Clone)]
struct Received {
    id: String,
    timestamp: i64,
    signature: String,
    body: Value,
    text: String,
}

/// A server that takes webhooks, and answers as told, then with 204.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=secret", listener.local_addr().unwrap());
        let receiver = Self { url, got: Arc::default(), answers: Arc::default() };
        let (got, answers) = (receiver.got.clone(), receiver.answers.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, got.clone(), answers.clone()));
            }
        });
        receiver
    }

    fn answer_with(&self, statuses: impl IntoIterator<Item = u16>) {
        self.answers.lock().unwrap().extend(statuses);
    }

    fn got(&self) -> Vec<Received> {
        self.got.lock().unwrap().clone()
    }

    fn kinds(&self) -> Vec<String> {
        self.got().iter().map(|one| one.body["type"].as_str().unwrap().to_owned()).collect()
    }
}

async fn answer(mut socket: TcpStream, got: Arc<Mutex<Vec<Received>>>, answers: Arc<Mutex<VecDeque<u16>>>) {
    let mut bytes = Vec::new();
    let (head, body_at) = loop {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break (String::from_utf8(bytes[..at].to_vec()).unwrap(), at + 4);
        }
    };
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        line.map(|line| line[name.len() + 2..].to_owned()).unwrap_or_default()
    };
    let length: usize = header("content-length").parse().unwrap();
    while bytes.len() < body_at + length {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
    assert!(head.starts_with("POST /hook?token=secret HTTP/1.1\r\n"), "{head}");
    assert_eq!(header("content-type"), "application/json");
    let text = String::from_utf8(bytes[body_at..].to_vec()).unwrap();
    got.lock().unwrap().push(Received {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp").parse().unwrap(),
        signature: header("webhook-signature"),
        body: serde_json::from_str(&text).unwrap(),
        text,
    });
    let status = answers.lock().unwrap().pop_front().unwrap_or(204);
    let location = if (300..400).contains(&status) { "location: http://127.0.0.1:1/\r\n" } else { "" };
    let answer = format!("HTTP/1.1 {status} x\r\n{location}content-length: 0\r\nconnection: close\r\n\r\n");
    let _ = socket.write_all(answer.as_bytes()).await;
}

/// A webhook for these kinds at the receiver: its id, and its secret.
async fn hook(server: &TestService, receiver: &Receiver, kinds: &[EventKind]) -> (WebhookId, SecretString) {
    let new = NewWebhook { url: receiver.url.clone(), events: kinds.to_vec(), note: None };
    let (made, secret) = server.service.create_webhook(&server.admin().await, &new).await.unwrap();
    (made.row.secret.id.parse().unwrap(), secret)
}

/// One round of the worker, to its end.
async fn deliver(server: &TestService) {
    for task in server.service.begin_deliveries().await.unwrap() {
        task.await.unwrap();
    }
}

async fn deliveries(server: &TestService, id: &WebhookId) -> Vec<DeliveryRow> {
    let page = PageBounds { after: None, limit: 100, descending: false };
    server.service.list_deliveries(&server.admin().await, id, None, &page).await.unwrap()
}

async fn summary(server: &TestService, id: &WebhookId) -> WebhookSummary {
    server.service.show_webhook(&server.admin().await, id).await.unwrap()
}

#[track_caller]
fn assert_signed(received: &Received, secret: &SecretString) {
    let key = BASE64.decode(secret.expose_secret().strip_prefix("whsec_").unwrap().as_bytes()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{}.{}.{}", received.id, received.timestamp, received.text).as_bytes());
    let signature = BASE64.decode(received.signature.strip_prefix("v1,").unwrap().as_bytes()).unwrap();
    assert!(mac.verify_slice(&signature).is_ok(), "{received:?}");
}

async fn pusher(server: &TestService) -> TokenText {
    server.contributor("ci", "push:*").await
}

on_each_database! {
    async fn a_quarantine_and_its_end_are_told(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        server.contributor("ci", "push:main").await;
        hook(&server, &receiver, &[EventKind::ContributorQuarantined, EventKind::ContributorRestored]).await;
        let (admin, target) = (server.admin().await, TakedownTarget::Contributor("ci".parse().unwrap()));
        let asked = QuarantineRequest { reason: "broken into".to_owned(), ..QuarantineRequest::default() };

        server.service.quarantine(&admin, &target, &asked).await.unwrap();
        deliver(&server).await;
        server.service.restore(&admin, &target, "false alarm").await.unwrap();
        deliver(&server).await;

        assert_eq!(receiver.kinds(), ["contributor.quarantined", "contributor.restored"]);
        let told = &receiver.got()[0].body["data"];
        assert_eq!((&told["contributor"], &told["reason"]), (&"ci".into(), &"broken into".into()), "{told}");
    }

    async fn a_quarantine_of_a_token_and_of_a_path_and_their_ends_are_told(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (token, sample) = (pusher(&server).await, Sample::numbered(1));
        server.push(&server.call(&token).await, &sample).await.unwrap();
        let kinds = [
            EventKind::TokenQuarantined,
            EventKind::TokenRestored,
            EventKind::PathQuarantined,
            EventKind::PathRestored,
        ];
        hook(&server, &receiver, &kinds).await;
        let id = server.service.verify_token(&token, server.clock.now()).unwrap().token;
        let path = TakedownTarget::Path("main".parse().unwrap(), sample.path.hash());
        let (admin, token) = (server.admin().await, TakedownTarget::Token(id));
        let asked = QuarantineRequest { reason: "broken into".to_owned(), ..QuarantineRequest::default() };

        for target in [&token, &path] {
            server.service.quarantine(&admin, target, &asked).await.unwrap();
            deliver(&server).await;
            server.service.restore(&admin, target, "false alarm").await.unwrap();
            deliver(&server).await;
        }

        assert_eq!(receiver.kinds(), kinds.map(EventKind::as_str));
        let got = receiver.got();
        assert_eq!(got[0].body["data"]["token_id"], id.to_string());
        let told = &got[2].body["data"];
        let expected = (&"main".into(), &sample.path.to_string().into(), &"broken into".into());
        assert_eq!((&told["cache"], &told["store_path"], &told["reason"]), expected, "{told}");
        assert_eq!(got[3].body["data"]["reason"], "false alarm");
    }

    async fn a_publication_is_told_once_signed_and_by_whom(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, secret) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let call = server.call(&pusher(&server).await).await;
        let sample = Sample::numbered(1);

        server.push(&call, &sample).await.unwrap();
        // The same again is no news.
        server.push(&call, &sample).await.unwrap();
        deliver(&server).await;
        deliver(&server).await;

        let got = receiver.got();
        assert_eq!(got.len(), 1, "{got:?}");
        assert_signed(&got[0], &secret);
        assert_eq!(got[0].timestamp, server.clock.now().unix_seconds());
        let Value::Object(message) = &got[0].body else { panic!("{got:?}") };
        assert_eq!(message.keys().collect::<Vec<_>>(), ["data", "timestamp", "type"]);
        let data = &message["data"];
        assert_eq!((&data["cache"], &data["public"], &data["count"]), (&FIRST_CACHE.into(), &true.into(), &1.into()));
        assert_eq!(data["paths"][0]["store_path"], sample.path.to_string());
        assert_eq!(data["by"]["contributor"], "ci");
        let told = deliveries(&server, &id).await;
        assert_eq!((told.len(), told[0].state, told[0].status), (1, DeliveryState::Delivered, Some(204)));
        assert_eq!(told[0].event_id, got[0].id);
        let summary = summary(&server, &id).await;
        assert_eq!((summary.waiting, summary.given_up, summary.failing_since), (0, 0, None));
        assert_eq!(summary.delivered_at, Some(server.clock.now()));
    }

    async fn what_fails_is_sent_again_under_the_same_id_until_it_is_taken(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, secret) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let call = server.call(&pusher(&server).await).await;
        receiver.answer_with([500, 302]);
        server.push(&call, &Sample::numbered(1)).await.unwrap();
        server.push(&call, &Sample::numbered(2)).await.unwrap();

        deliver(&server).await;
        // The second one was not tried where the first one failed; that one is not due.
        let told = deliveries(&server, &id).await;
        assert_eq!(told.iter().map(|one| one.attempts).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((told[0].status, told[0].error.as_deref()), (Some(500), Some("answered with status 500")));
        assert!(told[0].not_before > server.clock.now());
        assert_eq!(summary(&server, &id).await.failing_since, Some(told[0].created_at));
        deliver(&server).await;
        let told = deliveries(&server, &id).await;
        assert_eq!(told[1].error.as_deref(), Some("answered with status 302"), "no redirect is followed");
        server.clock.advance_seconds(6);
        deliver(&server).await;

        let got = receiver.got();
        assert_eq!(got.len(), 4, "{got:?}");
        assert_eq!(got[0].id, got[2].id);
        assert_eq!(got[1].id, got[3].id);
        assert_ne!(got[0].id, got[1].id);
        assert_eq!(got[0].text, got[2].text);
        assert_eq!(got[2].timestamp, got[0].timestamp + 6);
        got.iter().for_each(|one| assert_signed(one, &secret));
        assert!(deliveries(&server, &id).await.iter().all(|one| one.state == DeliveryState::Delivered));
    }

    async fn what_is_in_vain_for_three_days_is_given_up_and_stays_visible(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let call = server.call(&pusher(&server).await).await;
        receiver.answer_with([503; 100]);
        server.push(&call, &Sample::numbered(1)).await.unwrap();

        let mut rounds = 0;
        while deliveries(&server, &id).await[0].state == DeliveryState::Waiting {
            rounds += 1;
            assert!(rounds < 100);
            deliver(&server).await;
            server.clock.advance_seconds(6 * 3600);
        }

        assert!((12..20).contains(&receiver.got().len()), "{}", receiver.got().len());
        let summary = summary(&server, &id).await;
        assert_eq!((summary.waiting, summary.given_up, summary.failing_since), (0, 1, None));
        server.service.sweep().await.unwrap();
        assert_eq!(deliveries(&server, &id).await.len(), 1);
        server.clock.advance_seconds(8 * 24 * 3600);
        server.service.sweep().await.unwrap();
        assert!(deliveries(&server, &id).await.is_empty());
    }

    async fn a_webhook_that_does_not_answer_keeps_no_other_waiting(test: &TestDb) {
        let server = TestService::start(test).await;
        let (good, silent) = (Receiver::start().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (id, _) = hook(&server, &good, &[EventKind::PathPublished]).await;
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let new = NewWebhook { url, events: vec![EventKind::PathPublished], note: None };
        server.service.create_webhook(&server.admin().await, &new).await.unwrap();
        let call = server.call(&pusher(&server).await).await;
        server.push(&call, &Sample::numbered(1)).await.unwrap();

        let mut tasks = server.service.begin_deliveries().await.unwrap();
        assert_eq!(tasks.len(), 2);
        // It hangs, and is not begun a second time; the other one goes on.
        let (_held, _) = silent.accept().await.unwrap();
        while good.got().is_empty() {
            tokio::task::yield_now().await;
        }
        for round in 2..5 {
            server.push(&call, &Sample::numbered(round)).await.unwrap();
            while good.got().len() < usize::try_from(round).unwrap() {
                tasks.extend(server.service.begin_deliveries().await.unwrap());
                tokio::task::yield_now().await;
            }
        }

        assert!(deliveries(&server, &id).await.iter().all(|one| one.attempts == 1));
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }

    async fn a_conflict_a_revocation_a_suspension_and_a_key_are_told(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let kinds: Vec<EventKind> =
            EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::PathPublished).collect();
        hook(&server, &receiver, &kinds).await;
        let (admin, token) = (server.admin().await, pusher(&server).await);
        let call = server.call(&token).await;
        let base_name = Sample::numbered(1).path.base_name().to_owned();
        server.push(&call, &Sample::new(&base_name, "one", &[])).await.unwrap();

        for _ in 0..2 {
            // The second time it is known already.
            server.push(&call, &Sample::new(&base_name, "other", &[])).await.unwrap_err();
        }
        // Ids of one millisecond have no order.
        server.clock.advance_seconds(1);
        let id = call.caller.token().unwrap().token;
        server.service.revoke_token(&admin, id, "left", false).await.unwrap();
        server.clock.advance_seconds(1);
        let change = ContributorChange { suspended: Some(true), group: None };
        server.service.edit_contributor(&admin, &"ci".parse().unwrap(), &change).await.unwrap();
        server.clock.advance_seconds(1);
        let new = KeySource::New { name: None };
        let key = server.service.create_key(&admin, &FIRST_CACHE.parse().unwrap(), &new).await.unwrap();
        deliver(&server).await;

        assert_eq!(receiver.kinds(), ["path.conflict", "token.revoked", "contributor.suspended", "key.created"]);
        let data: Vec<Value> = receiver.got().into_iter().map(|one| one.body["data"].clone()).collect();
        assert_eq!(data[0]["count"], 1);
        assert_ne!(data[0]["paths"][0]["standing_nar_hash"], data[0]["paths"][0]["claimed_nar_hash"]);
        assert_eq!((&data[1]["token_ids"], &data[1]["reason"]), (&json!([id.to_string()]), &"left".into()));
        assert_eq!((&data[2]["contributor"], &data[2]["by"]["contributor"]), (&"ci".into(), &"admin".into()));
        assert_eq!(data[3]["public_key"], key.public_key.to_string());
        assert_eq!((&data[3]["state"], &data[3]["state_before"]), (&"active".into(), &Value::Null));
        let all: String = receiver.got().into_iter().map(|one| one.text).collect();
        assert!(!all.contains(token.expose()) && !all.contains("nvt_") && !all.contains("whsec_"), "{all}");
    }

    async fn nothing_is_queued_where_nothing_was_committed(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &EventKind::ALL).await;
        let call = server.call(&pusher(&server).await).await;
        let base = Sample::numbered(1);
        let dangling = Sample::new(Sample::numbered(2).path.base_name(), "two", &[&base.path]);

        server.push(&call, &dangling).await.unwrap_err();
        server.service.revoke_token(&call, crate::access::TokenId::new(Timestamp(1), [1; 10]), "no", false)
            .await
            .unwrap_err();

        assert!(deliveries(&server, &id).await.is_empty());
    }

    async fn while_the_vault_is_sealed_deliveries_wait(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, secret) = hook(&server, &receiver, &[EventKind::TokenRevoked]).await;
        let (admin, token) = (server.admin().await, pusher(&server).await);
        let revoked = server.call(&token).await.caller.token().unwrap().token;
        server.service.seal(&admin).await.unwrap();

        // Revoking goes on while sealed, and is told later.
        server.service.revoke_token(&admin, revoked, "leaked", false).await.unwrap();
        deliver(&server).await;
        let new = NewWebhook { url: receiver.url.clone(), events: EventKind::ALL.to_vec(), note: None };
        assert!(matches!(server.service.create_webhook(&admin, &new).await, Err(Error::Sealed)));
        assert!(matches!(server.service.test_webhook(&admin, &id).await, Err(Error::Sealed)));

        assert!(receiver.got().is_empty());
        let waiting = deliveries(&server, &id).await;
        assert_eq!((waiting.len(), waiting[0].attempts, waiting[0].state), (1, 0, DeliveryState::Waiting));
        server.service.unseal(&admin, Unseal::Configured).await.unwrap();
        deliver(&server).await;
        assert_eq!(receiver.kinds(), ["token.revoked"]);
        assert_signed(&receiver.got()[0], &secret);
    }

    async fn a_lease_of_a_replica_that_died_runs_out_and_another_one_sends(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let call = server.call(&pusher(&server).await).await;
        server.push(&call, &Sample::numbered(1)).await.unwrap();
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        let now = server.clock.now();
        let lease = webhook_deliveries::Lease { owner: "dead".into(), until: now.plus_seconds(60) };
        let leased = webhook_deliveries::lease(&mut tx, id.as_str(), &lease, now).await.unwrap().unwrap();
        tx.commit().await.unwrap();

        deliver(&server).await;
        assert!(receiver.got().is_empty(), "somebody else has it");
        server.clock.advance_seconds(61);
        deliver(&server).await;

        assert_eq!(receiver.got()[0].id, leased.event_id);
        // The dead one's late word changes nothing.
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        let late = webhook_deliveries::Attempt::Failed {
            status: Some(500),
            error: "late".into(),
            next: webhook_deliveries::Next::At(now),
        };
        webhook_deliveries::finish(&mut tx, &leased, &late, now).await.unwrap();
        tx.commit().await.unwrap();
        let told = deliveries(&server, &id).await;
        assert_eq!((told[0].state, told[0].attempts), (DeliveryState::Delivered, 2));
    }

    async fn a_webhook_that_was_removed_is_told_nothing_more(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &EventKind::ALL).await;
        let (other, _) = hook(&server, &receiver, &[EventKind::KeyCreated]).await;
        let call = server.call(&pusher(&server).await).await;
        server.push(&call, &Sample::numbered(1)).await.unwrap();

        server.service.remove_webhook(&server.admin().await, &id).await.unwrap();
        server.push(&call, &Sample::numbered(2)).await.unwrap();
        deliver(&server).await;

        assert!(receiver.got().is_empty());
        let admin = server.admin().await;
        assert!(matches!(server.service.show_webhook(&admin, &id).await, Err(Error::NotFound("webhook"))));
        assert!(matches!(server.service.remove_webhook(&admin, &id).await, Err(Error::NotFound("webhook"))));
        assert_eq!(server.service.list_webhooks(&admin).await.unwrap().len(), 1);
        assert_eq!(summary(&server, &other).await.waiting, 0);
        assert_eq!(server.service.webhook_backlog().await.unwrap().count, 0);
    }

    async fn a_paused_webhook_is_queued_nothing_and_what_waits_is_sent_later(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let (admin, call) = (server.admin().await, server.call(&pusher(&server).await).await);
        let paused = async |paused| {
            let change = WebhookChange { paused: Some(paused), ..WebhookChange::default() };
            server.service.edit_webhook(&admin, &id, &change).await.unwrap()
        };
        server.push(&call, &Sample::numbered(1)).await.unwrap();

        assert!(paused(true).await.row.paused_at.is_some());
        server.push(&call, &Sample::numbered(2)).await.unwrap();
        deliver(&server).await;
        assert!(receiver.got().is_empty());
        // A test is asked for by hand.
        let tested = server.service.test_webhook(&admin, &id).await.unwrap();
        assert_eq!((tested.state, receiver.kinds()), (DeliveryState::Delivered, vec!["webhook.test".to_owned()]));
        assert!(paused(false).await.row.paused_at.is_none());
        deliver(&server).await;

        assert_eq!(receiver.kinds(), ["webhook.test", "path.published"]);
    }

    async fn a_test_says_how_it_went(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, secret) = hook(&server, &receiver, &[EventKind::KeyCreated]).await;
        let admin = server.admin().await;
        receiver.answer_with([401]);

        let refused = server.service.test_webhook(&admin, &id).await.unwrap();
        let taken = server.service.test_webhook(&admin, &id).await.unwrap();

        assert_eq!((refused.state, refused.status, refused.attempts), (DeliveryState::Waiting, Some(401), 1));
        assert_eq!((taken.state, taken.kind.as_str()), (DeliveryState::Delivered, "webhook.test"));
        receiver.got().iter().for_each(|one| assert_signed(one, &secret));
        assert_eq!(receiver.got()[1].body["data"]["webhook"], id.as_str());
    }

    async fn only_an_admin_has_to_do_with_webhooks(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &EventKind::ALL).await;
        let call = server.call(&pusher(&server).await).await;
        let service = &server.service;
        let new = NewWebhook { url: receiver.url.clone(), events: EventKind::ALL.to_vec(), note: None };
        let page = PageBounds { after: None, limit: 1, descending: false };
        let change = WebhookChange::default();

        assert!(matches!(service.create_webhook(&call, &new).await, Err(Error::Forbidden)));
        assert!(matches!(service.list_webhooks(&call).await, Err(Error::Forbidden)));
        assert!(matches!(service.show_webhook(&call, &id).await, Err(Error::Forbidden)));
        assert!(matches!(service.edit_webhook(&call, &id, &change).await, Err(Error::Forbidden)));
        assert!(matches!(service.test_webhook(&call, &id).await, Err(Error::Forbidden)));
        assert!(matches!(service.list_deliveries(&call, &id, None, &page).await, Err(Error::Forbidden)));
        assert!(matches!(service.remove_webhook(&call, &id).await, Err(Error::Forbidden)));
    }

    async fn what_no_webhook_may_be_is_refused(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let admin = server.admin().await;
        let good = NewWebhook { url: receiver.url.clone(), events: vec![EventKind::KeyCreated], note: None };
        let create = async |new: NewWebhook| server.service.create_webhook(&admin, &new).await;

        for (url, why) in [("", "is not a URL"), ("https://a:b@c/", "user name"), ("gopher://c/", "https")] {
            let refused = create(NewWebhook { url: url.into(), ..good.clone() }).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{url}: {refused}");
        }
        let refused = create(NewWebhook { events: vec![], ..good.clone() }).await.unwrap_err();
        assert!(refused.to_string().starts_with("events: is empty"), "{refused}");
        let refused = create(NewWebhook { note: Some("a\nb".into()), ..good.clone() }).await.unwrap_err();
        assert!(refused.to_string().starts_with("note: "), "{refused}");
        for _ in 0..WEBHOOKS_MAX {
            create(good.clone()).await.unwrap();
        }
        let refused = create(good).await.unwrap_err();
        assert!(matches!(refused, Error::Conflict(Conflict::State(_))), "{refused}");
    }

    async fn neither_secret_nor_address_is_in_the_audit_and_no_secret_in_the_rows(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, secret) = hook(&server, &receiver, &EventKind::ALL).await;
        let admin = server.admin().await;
        server.clock.advance_seconds(1);
        let change = WebhookChange { note: Some("chat".into()), ..WebhookChange::default() };
        server.service.edit_webhook(&admin, &id, &change).await.unwrap();
        server.clock.advance_seconds(1);
        server.service.remove_webhook(&admin, &id).await.unwrap();

        let page = PageBounds { after: None, limit: 200, descending: false };
        let rows = server.service.list_audit(&admin, &crate::service::AuditQuery::default(), &page).await.unwrap();
        let rows: Vec<_> = rows.into_iter().filter(|row| row.action.starts_with("webhook-")).collect();
        let actions: Vec<_> = rows.iter().map(|row| row.action.as_str()).collect();
        assert_eq!(actions, ["webhook-create", "webhook-edit", "webhook-remove"]);
        let secret = secret.expose_secret().strip_prefix("whsec_").unwrap();
        for row in &rows {
            assert_eq!(row.subject, id.as_str());
            assert!(!row.detail.contains(secret) && !row.detail.contains("token=secret"), "{row:?}");
        }
        assert!(rows[0].detail.contains("http://127.0.0.1:"), "{rows:?}");
    }

    async fn a_queue_that_is_full_counts_what_it_does_not_take(test: &TestDb) {
        let server = TestService::start(test).await;
        let receiver = Receiver::start().await;
        let (id, _) = hook(&server, &receiver, &[EventKind::PathPublished]).await;
        let call = server.call(&pusher(&server).await).await;
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        let event = server.service.new_event("path.published", json!({}), server.clock.now());
        let many = (0..10_000).map(|number| (format!("{number:08}"), id.as_str().to_owned())).collect::<Vec<_>>();
        webhook_deliveries::enqueue(&mut tx, &event, &many, None).await.unwrap();
        tx.commit().await.unwrap();

        server.push(&call, &Sample::numbered(1)).await.unwrap();

        let summary = summary(&server, &id).await;
        assert_eq!((summary.waiting, summary.dropped), (10_000, 1));
        // A removal takes them all along.
        server.service.remove_webhook(&server.admin().await, &id).await.unwrap();
        assert_eq!(server.service.webhook_backlog().await.unwrap().count, 0);
    }
}
