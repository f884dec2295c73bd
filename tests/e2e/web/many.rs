//! How long a list of many VMs keeps the page from answering.
//! Out of scope: the daemon with many VMs.

use serde_json::json;

use super::{token, with_page};
use test_support::harness::{self, group};

#[test]
fn a_thousand_vms_do_not_freeze_the_page() {
    with_page(|harness, browser| {
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        // The lines of a watch with a thousand copies of one VM, and a change of each of them.
        let figures = browser.run_with(
            &json!({"vm": harness.get("vm a-1"), "group": harness.get("hostgroup a"), "token": token(&harness)}),
            "const line = (type, object) => JSON.stringify({ type, resource_version: '0000000000000001-1', object }) + '\\n';
             const copy = (number, ready) => ({ ...data.vm, metadata: { ...data.vm.metadata, name: `a-${number}` }, status: { ...data.vm.status, ready } });
             let lines = line('ADDED', data.group);
             for (let number = 1; number <= 1000; number += 1) lines += line('ADDED', copy(number, true));
             lines += JSON.stringify({ type: 'SYNCED', resource_version: '0000000000000001-1' }) + '\\n';
             let changes = '';
             for (let number = 1; number <= 1000; number += 1) changes += line('MODIFIED', copy(number, false));
             let asked = 0;
             let release;
             const released = new Promise((resolve) => { release = resolve; });
             await page.route('**/v1/watch?*', async (route) => {
                 asked += 1;
                 const body = [lines, changes][asked - 1];
                 if (asked === 2) await released;
                 if (body) await route.fulfill({ contentType: 'application/x-ndjson', body });
             });
             await page.evaluate(() => {
                 window.longest = 0;
                 window.total = 0;
                 new PerformanceObserver((list) => {
                     for (const { duration } of list.getEntries()) {
                         window.longest = Math.max(window.longest, duration);
                         window.total += duration;
                     }
                 }).observe({ type: 'longtask', buffered: false });
             });
             const measure = async () => page.evaluate(async () => {
                 // Until the observer has been told.
                 await new Promise((resolve) => setTimeout(resolve, 200));
                 const figures = [window.longest, window.total];
                 window.longest = window.total = 0;
                 return figures;
             });
             await page.getByLabel('Token of the API').fill(data.token);
             await page.keyboard.press('Enter');
             await page.getByText('a-1000').waitFor();
             await page.waitForFunction(() => document.querySelectorAll('tbody .pill.good').length === 1000);
             const listed = await measure();
             release();
             await page.waitForFunction(() => document.querySelectorAll('tbody .pill.busy').length === 1000);
             const changed = await measure();
             await page.getByLabel(/^Filter/).fill('a-99');
             await shows('11 of 1000');
             const filtered = await measure();
             await page.unrouteAll({ behavior: 'ignoreErrors' });
             return { listed, changed, filtered };",
        );
        println!("longest and total long tasks in ms: {figures}");
        for step in ["listed", "changed", "filtered"] {
            let longest = figures[step][0].as_f64().expect("a duration");
            assert!(longest < 1000.0 * harness::crowd(), "{step}: {figures}");
        }
    });
}
