//! Indexes that are damaged, and builds that are killed.

use std::path::Path;

use nunatak::error::{Error, Result};
use nunatak::index::change::{Known, add, compact, delete, merge};
use nunatak::index::repair::repair;
use nunatak::index::writer::BuildOptions;
use nunatak::index::{Index, verify};
use nunatak::progress::Quiet;
use nunatak::types::{Passage, PassageId};

use super::{build_of, build_with, built, copy, encode, ids, mix, options, passage, renewed, vector_of, word};

/// Flip bits here and there, cut, and remove every file in turn: nothing may panic, nothing wrong may be
/// read, and verify must name the file.
#[test]
fn damage_anywhere_is_named_and_never_read() {
    let (_parent, dir) = built(700);
    let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| (700..800).try_for_each(|n| sink(passage(n)));
    add(&dir, &mut more, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap();
    delete(&dir, &["p703".to_owned(), "p1".to_owned()], &options(), &Quiet).unwrap();
    let whole = answers(&dir).unwrap();
    let names: Vec<String> = Index::open(&dir).unwrap().manifest().files().map(|(name, _)| name).collect();
    let folders = ["gen-000001", "gen-000002", "gen-000003"];
    let there: usize = folders.iter().map(|folder| std::fs::read_dir(dir.join(folder)).unwrap().count()).sum();
    assert_eq!(names.len(), there);
    for name in names {
        let path = dir.join(&name);
        let bytes = std::fs::read(&path).unwrap();
        let mut places: Vec<u64> = (0..25).map(|i| mix(i, bytes.len() as u64) % bytes.len() as u64).collect();
        places.extend([0, bytes.len() as u64 - 1, bytes.len() as u64 / 2]);
        for place in places {
            let mut flipped = bytes.clone();
            flipped[place as usize] ^= 1 << (place % 8);
            change(&path, &flipped);
            expect_damage(&dir, &name, &whole, &format!("{name} flipped at {place}"));
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            change(&path, &bytes[..length]);
            expect_damage(&dir, &name, &whole, &format!("{name} cut to {length}"));
            assert!(Index::open(&dir).is_err(), "{name} cut to {length} opens");
        }
        std::fs::remove_file(&path).unwrap();
        expect_damage(&dir, &name, &whole, &format!("{name} removed"));
        let error = Index::open(&dir).unwrap_err();
        assert!(error.to_string().contains(&name) && error.hint().is_some(), "{name} removed: {error}");
        std::fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(answers(&dir).unwrap(), whole);
    assert_eq!(verify::verify(&dir, &Quiet).unwrap().damage, []);
}

/// Every file in turn flipped, cut and removed: a repair makes the index that a compaction would have made, but for passages that
/// nobody can read any more.
#[test]
fn a_damaged_index_is_made_whole_of_what_can_be_read() {
    let (parent, dir) = built(700);
    let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| {
        (600..640).try_for_each(|n| sink(renewed(n)))?;
        (700..802).try_for_each(|n| sink(passage(n)))
    };
    add(&dir, &mut more, Known::Replace, Some(&mut encode), &options(), &Quiet).unwrap();
    delete(&dir, &["p703".to_owned(), "p1".to_owned()], &options(), &Quiet).unwrap();
    let expected = parent.path().join("expected");
    copy(&dir, &expected);
    let hopeless = &mut |_: &[String]| panic!("all vectors are at hand");
    assert_eq!(repair(&expected, false, hopeless, &options(), &Quiet).unwrap().build, None, "it is whole");
    compact(&expected, &options(), &Quiet).unwrap();
    let (whole, all) = (answers(&expected).unwrap(), passages_of(&expected));
    let names: Vec<String> = Index::open(&dir).unwrap().manifest().files().map(|(name, _)| name).collect();
    for name in names {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 8;
        let damages = [Some(flipped.as_slice()), Some(&bytes[..bytes.len() / 2]), None];
        for (how, left) in ["flipped", "cut", "removed"].into_iter().zip(damages) {
            let what = format!("{name} {how}");
            let hurt = parent.path().join("hurt");
            copy_over(&dir, &hurt);
            std::fs::remove_file(hurt.join(&name)).unwrap();
            if let Some(left) = left {
                std::fs::write(hurt.join(&name), left).unwrap();
            }
            let (texts, deletions) = (name.ends_with("passages.arrow"), name.ends_with("deleted.bits"));
            let mut encoded = 0;
            let counting = &mut |texts: &[String]| {
                encoded += texts.len();
                encode(texts)
            };
            if texts || deletions {
                let before = listing(&hurt);
                let refused = repair(&hurt, false, counting, &options(), &Quiet).unwrap_err();
                assert!(refused.to_string().contains("cannot be read any more"), "{what}: {refused}");
                assert!(refused.hint().unwrap().contains("--accept-loss"));
                assert_eq!(listing(&hurt), before, "{what}: refused, and yet changed");
            }
            let report = repair(&hurt, texts || deletions, counting, &options(), &Quiet).unwrap();
            assert_eq!(report.damage.iter().map(|d| d.file.as_str()).collect::<Vec<_>>(), [&name], "{what}");
            assert_eq!(verify::verify(&hurt, &Quiet).unwrap().damage, [], "{what}");
            let left = passages_of(&hurt);
            if texts {
                assert!(report.lost > 0 && left.len() as u64 == 800 - report.lost, "{what}: {}", report.lost);
                assert!(how != "flipped" || report.lost <= 256, "{what}: its neighbours can be read");
                assert!(left.iter().all(|passage| all.contains(passage)), "{what}");
                continue;
            }
            if deletions {
                // Two were deleted; of those that were replaced the new ones count.
                assert_eq!((report.undeleted, left.len()), (2, 802), "{what}");
                assert!(all.iter().all(|passage| left.contains(passage)), "{what}");
                continue;
            }
            assert_eq!((report.lost, report.undeleted), (0, 0), "{what}");
            assert_eq!(left, all, "{what}");
            assert_eq!(answers(&hurt).unwrap(), whole, "{what}");
            assert!(encoded == 0 || name.ends_with("vectors.f16"), "{what}: {encoded} encoded");
            assert!(how != "flipped" || encoded < 100, "{what}: {encoded} encoded");
        }
    }
}

fn passages_of(dir: &Path) -> Vec<Passage> {
    let index = Index::open(dir).unwrap();
    index.passages().map(|row| index.passage(row).unwrap()).collect()
}

/// Names and lengths of all files of an index, in order.
fn listing(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut files: Vec<_> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_path_buf(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    files
}

/// Copy an index in the place of what is there.
fn copy_over(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    copy(from, to);
}

/// Replace a file by a new one: who has the old one mapped keeps it.
fn change(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Everything that can be asked of an index, answered.
fn answers(dir: &Path) -> Result<Vec<String>> {
    let index = Index::open(dir)?;
    let mut all = Vec::new();
    for n in (0..800).step_by(7) {
        all.push(format!("{:?}", index.passage(PassageId(n))?));
        all.push(format!("{:?}", index.row_of(&format!("p{n}"))?));
        all.push(format!("{:?}", index.lexical().search(&format!("{} unique{n}", word(n.into())), 20, None)?));
    }
    if let Some(dense) = index.dense() {
        for n in 0..20 {
            all.push(format!("{:?}", dense.search(&vector_of(n * 31), 20, 0, None)?));
            all.push(format!("{:?}", dense.search_exact(&vector_of(n * 31), 20, None)?));
        }
    }
    Ok(all)
}

fn expect_damage(dir: &Path, name: &str, whole: &[String], what: &str) {
    let report = verify::verify(dir, &Quiet).unwrap();
    let named: Vec<&str> = report.damage.iter().map(|damage| damage.file.as_str()).collect();
    assert_eq!(named, [name], "{what}");
    match answers(dir) {
        // The damage was in bytes that nothing needs: padding, or a part that was not asked for.
        Ok(answers) => assert_eq!(answers, whole, "{what}: wrong answers"),
        Err(error) => assert!(matches!(error, Error::Index { .. }), "{what}: {error:?}"),
    }
}

/// The child of the next test: between two sizes, by adding, updating, deleting, compacting, merging and building,
/// until killed.
#[test]
#[ignore = "runs as a child of `a_change_killed_at_any_instant_leaves_the_old_index_or_the_new`"]
fn change_until_killed() {
    let Some(dir) = std::env::var_os("NUNATAK_TEST_KILLED_CHANGE") else { return };
    let dir = Path::new(&dir);
    let overwrite = BuildOptions { overwrite: true, ..options() };
    // Few enough to be a segment of their own.
    let mut more = |sink: &mut dyn FnMut(Passage) -> Result<()>| (300..360).try_for_each(|n| sink(passage(n)));
    let mut anew = |sink: &mut dyn FnMut(Passage) -> Result<()>| (300..360).try_for_each(|n| sink(renewed(n)));
    let those: Vec<String> = (300..360).map(|n| format!("p{n}")).collect();
    // Beside the index, as the parent has built them.
    let parts = ["first", "second"].map(|name| dir.with_file_name(name));
    // Each child begins with another of the changes, or the short-lived would all try the same one.
    for round in u64::from(std::process::id()).. {
        match (Index::open(dir).unwrap().len(), round % 5) {
            (300, 0) => {
                let in_segments = BuildOptions { segment_passages: 150, ..overwrite.clone() };
                drop(build_with(dir, 360, &in_segments).unwrap());
            }
            (300, 1) => drop(merge(dir, &parts, &overwrite, &Quiet).unwrap()),
            (300, _) => drop(add(dir, &mut more, Known::Refuse, Some(&mut encode), &options(), &Quiet).unwrap()),
            (_, 0) => drop(build_with(dir, 300, &overwrite).unwrap()),
            (_, 1) => {
                compact(dir, &options(), &Quiet).unwrap();
                delete(dir, &those, &options(), &Quiet).unwrap();
            }
            (_, 2) => drop(merge(dir, &parts[..1], &overwrite, &Quiet).unwrap()),
            (_, 3) => drop(add(dir, &mut anew, Known::Replace, Some(&mut encode), &options(), &Quiet).unwrap()),
            (_, _) => drop(delete(dir, &those, &options(), &Quiet).unwrap()),
        }
    }
}

/// Whether an update of the last 60 of 360 passages is in the index: all of it or nothing.
fn is_updated(index: &Index) -> bool {
    let is_new = |n: u64| {
        let row = index.row_of(&format!("p{n}")).unwrap().unwrap();
        let found = index.passage(row).unwrap();
        assert!([passage(n), renewed(n)].contains(&found), "{found:?}");
        found == renewed(n)
    };
    let first = is_new(300);
    assert!((301..360).all(|n| is_new(n) == first), "half of an update");
    first
}

#[test]
fn a_change_killed_at_any_instant_leaves_the_old_index_or_the_new() {
    let kills = std::env::var("NUNATAK_TEST_KILLS").map_or(50, |n| n.parse().unwrap());
    let (_parent, dir) = built(300);
    build_of(&dir.with_file_name("first"), 0..300);
    build_of(&dir.with_file_name("second"), 300..360);
    let mut changes = 0;
    let mut last = (300, false);
    for kill in 0.. {
        // Committing now and then is not a promise, but without it the kills hit nothing worth hitting.
        if kill >= kills && changes > 0 {
            break;
        }
        assert!(kill < 20 * kills, "nothing was ever committed between kills");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "index::damage::change_until_killed", "--ignored"])
            .env("NUNATAK_TEST_KILLED_CHANGE", &dir)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 + mix(11, kill) % 400));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the child ended by itself at kill {kill}");
        let index = Index::open(&dir).unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        assert!([300, 360].contains(&index.len()), "kill {kill}: {} passages", index.len());
        let now = (index.len(), index.len() == 360 && is_updated(&index));
        changes += usize::from(now != last);
        last = now;
        assert_eq!(verify::verify(&dir, &Quiet).unwrap().damage, [], "kill {kill}");
        let n = mix(12, kill) % 300;
        assert_eq!(index.passage(PassageId(n as u32)).unwrap(), passage(n));
        assert_eq!(ids(&index.lexical().search(&format!("unique{n}"), 3, None).unwrap()), [n as u32]);
        assert_eq!(index.dense().unwrap().search(&vector_of(n), 1, 0, None).unwrap()[0].passage, PassageId(n as u32));
    }
    // And the next build is none the worse for what they left.
    build_with(&dir, 40, &BuildOptions { overwrite: true, ..options() }).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
}
