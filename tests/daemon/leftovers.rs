//! Garbage: what is ours and wanted by nobody goes; what is foreign stays.
//! Not here: what is wanted.

use crate::support::house::{House, inhabited, slots};
use crate::support::kernel::{Canaries, run};

/// Slots that no daemon knows any more: the database is gone with its journal, and one slot's record with them.
fn forgotten(house: &mut House) -> String {
    house.apply(&slots(2, ""));
    let lost = house.place("sandbox-1");
    house.kill();
    std::fs::remove_dir_all(house.state()).unwrap();
    std::fs::remove_file(house.run.join(slicectl::store::JOURNAL)).unwrap();
    std::fs::remove_file(house.run.join("vm").join(&lost.uid).join("record.json")).unwrap();
    lost.link
}

#[test]
fn what_a_dead_daemon_left_is_removed_at_the_start_and_the_rest_is_adopted() {
    inhabited(|mut house| {
        let canaries = Canaries::release();
        let link = forgotten(&mut house);
        house.start();
        house.until("the forgotten slot is gone", || {
            (!run("ip -o link").contains(&link)).then_some(())
        });
        let told = house.until("the event", || house.messages("", "GarbageCollected").pop());
        assert!(told.contains("removed"), "{told}");
        house.ctl("wait hg/sandbox --for ready --timeout 20s");
        // The group asks for two: the slot is built anew.
        assert_eq!(house.vms(), ["sandbox-1", "sandbox-2"]);
        assert_eq!(
            run("ls /run/netns; ls /run/slice/vm").lines().count(),
            2 + 2 + 1
        );
        canaries.assert_alive();
    });
}

#[test]
fn gc_with_dry_run_only_tells_and_gc_removes() {
    inhabited(|house| {
        let canaries = Canaries::release();
        house.apply(&slots(1, ""));
        let place = house.place("sandbox-1");
        let alias = run(&format!("ip -o link show {}", place.link));
        let label = alias
            .split("alias ")
            .nth(1)
            .unwrap()
            .trim()
            .trim_end_matches('\\')
            .trim()
            .to_owned();
        // A link of ours of a VM that never was, made while nobody looked.
        let stray = label
            .replace("sandbox-1@", "ghost-7@")
            .replace(&place.uid, "11111111-2222-4333-8444-555555555555");
        let names = slicectl::owner::names_of(&stray.parse().expect("a label"));
        run(&format!(
            "ip link add {0} type bridge; ip link set {0} alias '{stray}'",
            names.host_link
        ));
        let told = house.ctl("gc --dry-run");
        assert!(told.contains("ghost-7"), "{told}");
        assert!(
            run("ip -o link").contains(&names.host_link),
            "a dry run removed it"
        );
        house.ctl("gc");
        house.until("it is gone", || {
            (!run("ip -o link").contains(&names.host_link)).then_some(())
        });
        house.until("nothing is told", || {
            (!house.ctl("gc --dry-run").contains("ghost-7")).then_some(())
        });
        house.ctl("wait hg/sandbox --for ready --timeout 5s");
        canaries.assert_alive();
    });
}

#[test]
fn the_empty_file_that_a_namespace_was_mounted_on_goes_with_its_vm() {
    inhabited(|mut house| {
        house.save("sandbox.yaml", &slots(1, ""));
        house.until("the slot", || {
            (house.get("vm sandbox-1")["status"]["ready"] == true).then_some(())
        });
        let netns = house.place("sandbox-1").netns;
        house.kill();
        // As a crash between unmounting and removing leaves it.
        run(&format!("umount {netns}"));
        std::fs::remove_file(house.conf().join("sandbox.yaml")).unwrap();
        house.start();
        house.until("all gone", || {
            run(&format!(
                "ls {0}/netns {0}/vm | grep - || true",
                house.run.display()
            ))
            .is_empty()
            .then_some(())
        });
    });
}
