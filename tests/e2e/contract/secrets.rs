//! Secrets, and which guests get them.
//! Out of scope: the files in guests (`guest_access::secrets`).

use serde_json::json;

use super::{assert_error, guest, with_vmm};

#[test]
fn secrets_are_created_listed_changed_and_deleted_and_never_shown() {
    with_vmm("", |harness, api| {
        assert_eq!(api.get("/secrets").json(), json!([]));
        let created = api.post(
            "/secrets",
            &json!({"name": "token", "data": "aHVudGVyMg=="}),
        );
        assert_eq!(created.status, 201, "{created:?}");
        let again = api.post("/secrets", &json!({"name": "token", "data": ""}));
        assert_error(&again, 409, "exists");
        let list = api.get("/secrets").json();
        let secret = &list[0];
        assert_eq!(secret["name"], "token");
        assert_eq!(secret["size"], 7);
        assert_eq!(secret["permissions"], "0600");
        assert_eq!(
            (secret["uid"].clone(), secret["gid"].clone()),
            (json!(0), json!(0))
        );
        assert!(secret["mod_time"].is_string());
        assert_eq!(
            secret["mod_time"], secret["modified_at"],
            "each client reads another"
        );
        assert!(!list.to_string().contains("hunter2") && !list.to_string().contains("aHVudGVyMg"));
        for (body, sentence) in [
            (json!({"data": ""}), "invalid name"),
            (json!({"name": "../x", "data": ""}), "invalid name"),
            (json!({"name": "x", "data": "%"}), "no valid base64"),
            (
                json!({"name": "x", "data": "", "permissions": "9"}),
                "permissions",
            ),
            (json!("x"), "invalid body"),
        ] {
            assert_error(&api.post("/secrets", &body), 400, sentence);
        }
        let patched = api.send(
            "PATCH",
            "/secrets/token",
            Some(r#"{"data":"YQ==","permissions":"0644"}"#),
        );
        assert_eq!(patched.status, 200);
        assert_eq!(api.get("/secrets").json()[0]["size"], 1);
        assert_eq!(
            api.send("PATCH", "/secrets/token", None).status,
            200,
            "nothing changes"
        );
        assert_error(
            &api.send("PATCH", "/secrets/other", Some("{}")),
            404,
            "not found",
        );

        // A guest gets all, those of its request, or none.
        api.post("/secrets", &json!({"name": "second", "data": ""}));
        for (body, expected) in [
            (json!({}), json!(["second", "token"])),
            (json!({"secrets": ["token"]}), json!(["token"])),
            (json!({"secrets": []}), json!(null)),
        ] {
            let vm = guest(harness, api, &body).name;
            let vm = harness.get(&format!("vm {vm}"));
            assert_eq!(
                vm["spec"]["guest_access"]["provision"]["secrets"], expected,
                "{body}"
            );
        }
        assert_eq!(api.delete("/secrets/token").status, 200);
        assert_error(&api.delete("/secrets/token"), 404, "not found");
    });
}

#[test]
fn a_group_that_names_its_secrets_gives_no_others() {
    with_vmm("secrets: [own]", |harness, api| {
        for name in ["own", "foreign"] {
            assert_eq!(
                api.post("/secrets", &json!({"name": name, "data": ""}))
                    .status,
                201
            );
        }
        let vm = guest(harness, api, &json!({})).name;
        let vm = harness.get(&format!("vm {vm}"));
        assert_eq!(
            vm["spec"]["guest_access"]["provision"]["secrets"],
            json!(["own"])
        );
    });
}
