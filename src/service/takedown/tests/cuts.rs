//! A replica that dies before any of its commits: whoever is asked again, or goes on, ends where an uncut one would have.

use super::*;
use crate::db::tokens;

/// What a takedown has to see to: paths of two batches, a build trace entry, and somebody else's dependent.
struct Scene {
    name: String,
    token: TokenId,
    own: Vec<Sample>,
    dependent: Sample,
    entry: String,
}

impl Scene {
    async fn set(server: &TestService, bob: &TokenText, number: u64) -> Self {
        let name = format!("alice-{number}");
        let text = server.contributor(&name, "push:main").await;
        let own: Vec<_> = (0..4).map(|path| Sample::numbered(number * 10 + path)).collect();
        for sample in &own {
            server.push(&server.call(&text).await, sample).await.unwrap();
        }
        let base_name = Sample::numbered(number * 10 + 9).path.base_name().to_owned();
        let dependent = Sample::new(&base_name, "refers", &[&own[0].path]);
        let bob = server.call(bob).await;
        server.push(&bob, &dependent).await.unwrap();
        // Its output is Bob's as well, so the entry alone is hers.
        let shared = Sample::numbered(number * 10 + 8);
        server.push(&bob, &shared).await.unwrap();
        let drv = format!("sha256:{number:064x}!out");
        let body = serde_json::json!({
            "id": drv, "outPath": shared.path.base_name(), "signatures": [], "dependentRealisations": {},
        });
        let entry = format!("realisations/{drv}.doi");
        let (alice, cache) = (server.call(&text).await, "main".parse().unwrap());
        let key = entry.parse().unwrap();
        server.service.put_realisation(&alice, &cache, key, body.to_string().as_bytes()).await.unwrap();
        let token = server.service.verify_token(&text, server.clock.now()).unwrap().token;
        Self { name, token, own, dependent, entry }
    }

    fn asked() -> QuarantineRequest {
        QuarantineRequest { dependents: true, ..since(NOON) }
    }

    /// Every path's state, whether the entry is served, and how often each stands in the log with `event`.
    async fn stands(
        &self,
        server: &TestService,
        test: &TestDb,
        event: &str,
    ) -> (Vec<&'static str>, bool, Vec<usize>) {
        let (mut states, mut leaves) = (Vec::new(), Vec::new());
        for sample in self.own.iter().chain([&self.dependent]) {
            states.push(state(server, sample).await);
            leaves.push(leaves_of(test, event, sample).await);
        }
        let mut connection = test.db.read().await.unwrap();
        let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
        let entries =
            realisations::published_among(&mut connection, cache.id, [self.entry.clone()]).await.unwrap();
        (states, !entries.is_empty(), leaves)
    }

    async fn assert_taken_down(&self, server: &TestService, test: &TestDb) {
        assert_eq!(self.stands(server, test, "withdraw").await, (vec!["withdrawn"; 5], false, vec![1; 5]));
        let mut connection = test.db.read().await.unwrap();
        assert!(tokens::by_id(&mut connection, self.token).await.unwrap().unwrap().revoked_at.is_some());
        let leaves = log::leaves(&mut connection, 0, 10_000).await.unwrap();
        let revoked = format!("\nsubject {}\n", self.token);
        let revoked = leaves
            .iter()
            .filter(|(_, leaf)| leaf.contains("\nevent token-revoke\n") && leaf.contains(&revoked));
        assert_eq!(revoked.count(), 1);
    }
}

/// As the call does it, but for storage. The error: it died.
async fn take_down(service: &Service, call: &Call, scene: &Scene) -> Result<()> {
    let (row, changed) = service.begin_quarantine(call, &contributor(&scene.name), &Scene::asked()).await?;
    service.carry_through(&row.id, changed).await.map(drop)
}

async fn bring_back(service: &Service, call: &Call, scene: &Scene) -> Result<()> {
    let (row, _) = service.begin_restore(call, &contributor(&scene.name), "false alarm").await?;
    service.carry_through(&row.id, false).await.map(drop)
}

on_each_database! {
    async fn cut_before_any_commit_a_takedown_and_a_restoration_are_ended_by_whoever_goes_on(test: &TestDb) {
        let server = TestService::start(test).await;
        let bob = server.contributor("bob", "push:main").await;
        let admin = server.admin().await;
        let mut whole = [false; 2];
        for commits in 0.. {
            let scene = Scene::set(&server, &bob, commits as u64).await;
            let (mortal, _) = testing::open(test, &server.clock, testing::vault(test)).await;

            mortal.inner.db.cut.after(commits);
            let died = take_down(&mortal, &admin, &scene).await.is_err();
            whole[0] = !died;
            // Asked again where the row was never written, or taken up by a replica that finds it.
            take_down(&server.service, &admin, &scene).await.unwrap();
            scene.assert_taken_down(&server, test).await;

            mortal.inner.db.cut.after(commits);
            whole[1] = bring_back(&mortal, &admin, &scene).await.is_ok();
            if commits % 2 == 0 {
                bring_back(&server.service, &admin, &scene).await.unwrap();
            } else {
                server.service.resume_quarantines(0).await.unwrap();
                bring_back(&server.service, &admin, &scene).await.unwrap();
            }
            let expected = (vec!["published"; 5], true, vec![1; 5]);
            assert_eq!(scene.stands(&server, test, "restore").await, expected, "{commits}");
            mortal.inner.db.cut.after(usize::MAX);
            mortal.shut_down().await;
            if whole == [true; 2] {
                // Its beginning, tokens, two batches of evidence, entries, dependents, the end.
                assert!(commits >= 7, "{commits}");
                break;
            }
        }
    }
}
