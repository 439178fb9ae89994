//! `enid config`: every setting, its value, and what gives it.

use enid_api::v1::{GetPoolRequest, NextValue, Setting};

use super::connect::{self, reply};
use crate::{
    print::{Output, column, show, table, wide},
    settings::{SETTINGS, Settings, given::Given},
};

/// Prints the settings: the daemon's or, while none answers, what this environment would give to one.
pub async fn run(given: &Given, settings: &Settings, output: Output) -> anyhow::Result<()> {
    let said = async {
        let mut debug = connect::debug(settings).await?;
        reply(debug.get_pool(GetPoolRequest {})).await
    };
    let settings = match said.await {
        Ok(pool) => pool.settings,
        Err(_) => {
            eprintln!("enid: no daemon answers: this is what it would start with here, but for NodeConfigs");
            of_environment(given)
        }
    };
    let columns = [
        column("SETTING"),
        column("VALUE"),
        column("GIVEN BY"),
        column("AT THE NEXT START"),
        wide("DEFAULT"),
        wide("MEANING"),
    ];
    show(output, &settings, || {
        let rows = settings.iter().map(|setting| {
            let known = SETTINGS.iter().find(|known| known.name == setting.name);
            let next = setting.next.as_ref().map(|NextValue { value, origin }| format!("{value} ({origin})"));
            let (default, help) = known.map_or(("", ""), |known| (known.default, known.help));
            [
                setting.name.clone(),
                setting.value.clone(),
                setting.origin.clone(),
                next.unwrap_or_default(),
                default.to_owned(),
                help.to_owned(),
            ]
        });
        table(output, columns, rows)
    })
}

fn of_environment(given: &Given) -> Vec<Setting> {
    let each = SETTINGS.iter().map(|setting| {
        let (value, origin) = given.value(setting);
        Setting { name: setting.name.to_owned(), value: value.to_owned(), origin: origin.to_string(), next: None }
    });
    each.collect()
}
