//! A replica that dies before any of its commits, in each part of a key's life: whoever goes on, or is asked again,
//! ends where an uncut one would have, with storage, rows and log in agreement.

use super::realisations::{entry_signers_in, put_entry_in};
use super::*;
use crate::db::key_rotations::RotationKind;
use crate::nix::realisation::RealisationKey;

/// A part of a key's life, by whoever is at it: does what is not done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Begin,
    Promote,
    Resign,
    Retire,
    Drop,
    Destroy,
    Compromise,
    Inspect,
}

const PARTS: [Part; 8] = [
    Part::Begin,
    Part::Promote,
    Part::Resign,
    Part::Retire,
    Part::Drop,
    Part::Destroy,
    Part::Compromise,
    Part::Inspect,
];

/// A cache with two paths and an entry.
struct Scene {
    cache: CacheName,
    samples: Vec<Sample>,
    entry: RealisationKey,
    first: KeyName,
}

impl Scene {
    async fn set(desk: &Desk, everywhere: &TokenText, number: u64) -> Self {
        let cache: CacheName = format!("cut-{number}").parse().unwrap();
        let (service, host) = (desk.service(), Call::host());
        service.create_cache(&host, &new_cache(cache.as_str())).await.unwrap();
        let first = service.create_key(&host, &cache, &KeySource::New { name: None }).await.unwrap();
        let samples: Vec<Sample> = (0..2).map(|path| Sample::numbered(number * 10 + path)).collect();
        let call = desk.server.call(everywhere).await;
        for sample in &samples {
            desk.server.push_to(&cache, &call, sample).await.unwrap();
        }
        service.finish().await.unwrap();
        let entry = put_entry_in(desk, &cache, everywhere, number, &samples[0]).await;
        Self { cache, samples, entry, first: first.public_key.name().clone() }
    }

    async fn states(&self, service: &Service) -> Vec<(KeyName, KeyState)> {
        let rows = service.list_keys(&Call::host(), &self.cache).await.unwrap();
        let mut states: Vec<_> =
            rows.into_iter().map(|row| (row.public_key.name().clone(), row.state)).collect();
        // By the numbers in their names: the clock stands still, and their ids say nothing of the order.
        states.sort_by(|(one, _), (other, _)| one.cmp(other));
        states
    }

    async fn step(&self, service: &Service) -> Option<RotationStep> {
        Some(service.show_rotation(&Call::host(), &self.cache).await.ok()?.step)
    }

    /// What an administrator would do who looks first, and what a replica does by itself. The error: it died.
    async fn take_part(&self, service: &Service, part: Part) -> super::super::Result<()> {
        let (host, cache) = (Call::host(), &self.cache);
        let states = self.states(service).await;
        let is = |name: &KeyName, state| states.iter().any(|found| *found == (name.clone(), state));
        match part {
            Part::Begin if states.len() == 1 => {
                service.rotate_key(&host, cache, &RotationRequest::default()).await.map(drop)
            }
            Part::Promote if states[1].1 == KeyState::Next => {
                service.promote_key(&host, cache, &states[1].0).await.map(drop)
            }
            Part::Resign => self.advance(service, RotationStep::Release).await,
            Part::Retire if is(&self.first, KeyState::Retiring) => {
                service.retire_key(&host, cache, &self.first).await.map(drop)
            }
            Part::Drop => {
                // The one that was asked for, or that which came before.
                let shown = service.show_rotation(&host, cache).await?;
                if shown.kind == RotationKind::Planned {
                    service.drop_signatures(&host, cache, &self.first).await?;
                }
                self.advance(service, RotationStep::Release).await
            }
            Part::Destroy if is(&self.first, KeyState::Retired) => {
                service.destroy_key(&host, cache, &self.first).await.map(drop)
            }
            Part::Compromise => {
                if states[1].1 == KeyState::Active {
                    service.compromise_key(&host, cache, &states[1].0, "the host was broken into").await?;
                }
                self.advance(service, RotationStep::Release).await
            }
            Part::Inspect => self.advance(service, RotationStep::Done).await,
            _ => Ok(()),
        }
    }

    /// Takes the rotation on to this step or beyond, and leaves storage to others.
    async fn advance(&self, service: &Service, to: RotationStep) -> super::super::Result<()> {
        let beyond = [RotationStep::Wait, RotationStep::Inspect, RotationStep::Done];
        for _ in 0..40 {
            let step = self.step(service).await.unwrap();
            if step == to || to != RotationStep::Done && beyond.contains(&step) {
                return Ok(());
            }
            service.advance_rotations().await?;
        }
        panic!("{to:?} is not reached");
    }

    /// Whoever is left does what is not done, storage included.
    async fn settle(&self, desk: &Desk, part: Part) {
        // What the dead one had leased.
        desk.server.clock.advance_seconds(11);
        self.take_part(desk.service(), part).await.unwrap();
        let end = match part {
            Part::Begin => RotationStep::Publish,
            Part::Promote => RotationStep::Resign,
            Part::Resign => RotationStep::Wait,
            Part::Compromise => RotationStep::Inspect,
            Part::Retire | Part::Drop | Part::Destroy | Part::Inspect => RotationStep::Done,
        };
        for _ in 0..40 {
            while desk.service().release_due().await.unwrap() > 0 {}
            desk.service().finish().await.unwrap();
            if self.step(desk.service()).await == Some(end) {
                // And what this one has.
                desk.server.clock.advance_seconds(11);
                return;
            }
            desk.service().advance_rotations().await.unwrap();
        }
        panic!("{part:?} does not come to its end");
    }

    /// The signers of everything, which are the same for all.
    async fn signers(&self, desk: &Desk) -> BTreeSet<String> {
        let signers = entry_signers_in(desk, &self.cache, &self.entry).await.unwrap();
        for sample in &self.samples {
            assert_eq!(desk.signers_in(&self.cache, sample).await, signers);
        }
        signers
    }

    /// Clients are told by storage what the rows say: so many statements.
    async fn assert_told(&self, desk: &Desk, statements: u64) {
        let service = desk.service();
        let chain = service.succession(&Call::host(), &self.cache).await.unwrap().chain;
        let row = service.existing_cache(&self.cache).await.unwrap();
        let object = crate::service::key_of(&row, CacheObject::KeySuccession).unwrap();
        let stored = service.inner.storage.read(&object, 1 << 20).await.unwrap().unwrap();
        assert_eq!(stored, chain.encode());
        assert_eq!(chain.head(), statements);
    }

    /// Nothing was logged twice: neither what a key signed, nor what became of it.
    async fn assert_logged_once(&self, desk: &Desk) {
        let (mut signed_by, mut states) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
        let prefix = format!("{}-", self.cache);
        for leaf in desk.leaves().await {
            match leaf.event {
                Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed)
                    if signed.key.as_str().starts_with(&prefix) =>
                {
                    *signed_by.entry(signed.key.to_string()).or_insert(0) += 1;
                }
                Event::KeyCreate(key) | Event::KeyState(key) if key.key.as_str().starts_with(&prefix) => {
                    let state = key.state.unwrap().to_string();
                    states.entry(key.key.to_string()).or_default().push(state);
                }
                _ => {}
            }
        }
        // Two paths and an entry each.
        assert_eq!(signed_by.into_values().collect::<Vec<_>>(), [3; 3]);
        // Beside its changes, the old key has a leaf at the beginning of the rotation, and one when its signatures go.
        let expected = [
            vec!["active", "active", "retiring", "retired", "retired", "destroyed"],
            vec!["next", "active", "compromised"],
            vec!["active"],
        ];
        assert_eq!(states.into_values().collect::<Vec<_>>(), expected);
    }
}

on_each_database! {
    async fn cut_before_any_commit_a_keys_life_is_gone_on_with_by_whoever_is_left(test: &TestDb) {
        // The rate is what makes the batches: one path, then the other.
        let limits = KeyLimits { resign_paths_per_second: 1, ..KeyLimits::default() };
        let desk = Desk::start_paced(test, limits).await;
        let everywhere = desk.server.contributor("everywhere", "push:*").await;
        let mut commits_of = BTreeMap::new();
        for commits in 0.. {
            let scene = Scene::set(&desk, &everywhere, commits as u64).await;
            let others = testing::Others { keys: limits, ..testing::Others::default() };
            let (mortal, _) = testing::open_with(test, &desk.server.clock, testing::vault(test), others).await;
            let mut died = 0;
            for part in PARTS {
                mortal.inner.db.cut.after(commits);
                let lived = scene.take_part(&mortal, part).await.is_ok() && !mortal.inner.db.cut.is_dead();
                mortal.inner.db.cut.after(usize::MAX);
                if lived {
                    commits_of.entry(format!("{part:?}")).or_insert(commits);
                } else {
                    died += 1;
                }
                scene.settle(&desk, part).await;

                let states = scene.states(desk.service()).await;
                let (signers, at) = (scene.signers(&desk).await, format!("{part:?} cut before commit {commits}"));
                let key = |number: usize| states[number].0.clone();
                let both = names(&[&key(0), &states.last().unwrap().0]);
                let expected = match part {
                    Part::Begin => (vec![KeyState::Active, KeyState::Next], names(&[&key(0)])),
                    Part::Promote => (vec![KeyState::Retiring, KeyState::Active], names(&[&key(0)])),
                    Part::Resign => (vec![KeyState::Retiring, KeyState::Active], both),
                    Part::Retire => (vec![KeyState::Retired, KeyState::Active], both),
                    Part::Drop => (vec![KeyState::Retired, KeyState::Active], names(&[&key(1)])),
                    Part::Destroy => (vec![KeyState::Destroyed, KeyState::Active], names(&[&key(1)])),
                    Part::Compromise | Part::Inspect => (
                        vec![KeyState::Destroyed, KeyState::Compromised, KeyState::Active],
                        names(&[&key(states.len() - 1)]),
                    ),
                };
                let found: Vec<KeyState> = states.iter().map(|(_, state)| *state).collect();
                assert_eq!((found, signers), expected, "{at}");
                let retired = !matches!(part, Part::Begin | Part::Promote | Part::Resign);
                scene.assert_told(&desk, if retired { 2 } else { 1 }).await;
            }
            scene.assert_logged_once(&desk).await;
            mortal.shut_down().await;
            if died == 0 {
                break;
            }
        }
        // Of a call, one; of what goes on by itself, a lease and a batch each time, and the steps between.
        assert_eq!(commits_of.len(), PARTS.len());
        for (part, least) in [("Begin", 1), ("Promote", 1), ("Resign", 8), ("Retire", 1), ("Drop", 8), ("Compromise", 8)] {
            assert!(commits_of[part] > least, "{part}: {commits_of:?}");
        }
    }
}
