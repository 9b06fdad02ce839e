//! The HTML report in a real browser: what a reader sees, with the keyboard alone too.

use super::browser::{Browser, DOWN, END, ENTER, ESCAPE, HOME, LEFT, PAGE_DOWN, RIGHT, TAB, UP};
use super::project::Project;

const EVIL: &str =
    "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 2'><b>bold</b>";

/// A matrix of two axes, 60 rows in two topics, three draws each: 720 samples, whose every text tries to run.
fn matrix() -> Project {
    let engine = format!(
        "replies = [\n{}\n{{ reply = '''0 {EVIL}''' }},\n]",
        (0..5)
            .map(|i| format!("{{ when = \"What is {i} \", reply = \"{i}\" }},"))
            .collect::<String>()
    );
    let workflow = "epochs = 3\ntemperature = 0.5\nscorers = [\"includes\"]\n\
                    [stage.ask.matrix]\nmethod = [\"naive\", \"cot\"]\nmax_tokens = [64, 128]";
    let project = Project::with(workflow, &engine);
    project.edit("pipelines/bench.toml", "default = 10", "default = 60");
    project.edit("templates/qa.toml", "targets = ", "tags = [\"topic\"]\ntargets = ");
    let row = |n: usize| {
        let topic = ["sums", "<i>words</i>"][n % 2];
        format!(
            "{{\"id\": \"q{n}\", \"question\": \"What is {n} + 0?\", \"answer\": {n}, \"topic\": \"{topic}\"}}\n"
        )
    };
    project.write("fixtures/rows.jsonl", &(0..60).map(row).collect::<String>());
    project.ok(&[]);
    project
}

fn opened(project: &Project) -> Option<Browser> {
    let browser = Browser::start()?;
    browser.open_file(&project.path("out/bench/report/report.html"));
    browser.wait_until("performance.getEntriesByName('samples-ready').length");
    Some(browser)
}

const COUNT: &str = "document.querySelector('#count').textContent";
const ACTIVE: &str = "document.activeElement.getAttribute('aria-rowindex')";

#[test]
fn a_report_is_read_with_the_keyboard_alone() {
    let project = matrix();
    let Some(browser) = opened(&project) else { return };
    assert_eq!(browser.text(COUNT), "720 of 720");
    assert_eq!(
        browser.text("document.querySelector('#list').getAttribute('aria-rowcount')"),
        "721"
    );
    // Of many rows few exist.
    let lines = browser.value("document.querySelectorAll('#list .row').length").as_u64().unwrap();
    assert!((5..60).contains(&lines), "{lines} rows");
    // From the search by Tab into the list.
    browser.keys(&["/"]);
    assert_eq!(browser.text("document.activeElement.id"), "search");
    for _ in 0..20 {
        browser.keys(&[TAB]);
        if browser.value(ACTIVE) != serde_json::Value::Null {
            break;
        }
    }
    assert_eq!(browser.text(ACTIVE), "2");
    browser.keys(&[DOWN, DOWN, UP]);
    assert_eq!(browser.text(ACTIVE), "3");
    browser.keys(&[END]);
    assert_eq!(browser.text(ACTIVE), "721");
    browser.wait_until("document.activeElement.querySelector('.of-flow').textContent === 'q59 #3'");
    browser.keys(&[HOME, PAGE_DOWN]);
    assert!(browser.text(ACTIVE).parse::<u32>().unwrap() > 4);
    // Into a sample, to the one before it and back, and out.
    browser.keys(&[HOME, DOWN, ENTER]);
    browser.wait_until("document.querySelector('#sheet').open");
    assert!(
        browser.text("document.querySelector('#sheet-name').textContent").starts_with("q0 #2 ")
    );
    browser.keys(&[RIGHT]);
    browser.wait_until("document.querySelector('#sheet-name').textContent.startsWith('q0 #3 ')");
    browser.keys(&[LEFT]);
    browser.wait_until("document.querySelector('#sheet-name').textContent.startsWith('q0 #2 ')");
    let said = "[...document.querySelectorAll('#sheet .turn')].map(t => t.textContent).join('|')";
    assert!(browser.text(said).contains("What is 0 + 0?"), "{}", browser.text(said));
    browser.keys(&[ESCAPE]);
    assert_eq!(browser.value("document.querySelector('#sheet').open"), false);
    assert_eq!(browser.text(ACTIVE), "3", "the focus is where it was");
}

#[test]
fn what_was_retrieved_stands_in_the_details_as_text() {
    let rag = "[stage.ask.rag]\nretrieval_method = \"naive\"\ntop_k = 2\ncorpus = \"fixtures/docs.jsonl\"";
    let project = Project::with(rag, "replies = [{ reply = \"3\" }]");
    let row = |id, text: &str| format!("{}\n", serde_json::json!({ "id": id, "text": text }));
    let docs = row("<b>a</b>", &format!("The sum of 3 {EVIL}")) + &row("b", "Nothing else.");
    project.write("fixtures/docs.jsonl", &docs);
    project.ok(&[]);
    let Some(browser) = opened(&project) else { return };
    browser.keys(&["/"]);
    browser.typed("What is 3 ");
    browser.wait_until(&format!("{COUNT} === '1 of 10'"));
    browser.run("document.querySelector('#list .row').click(); return 0");
    browser.wait_until("document.querySelector('#sheet').open");
    let found = "document.querySelector('#sheet details')";
    assert_eq!(
        browser.text(&format!("{found}.querySelector('summary').textContent")),
        "Retrieved (naive): 1"
    );
    let cells = format!("[...{found}.querySelectorAll('td')].map(cell => cell.textContent)");
    assert_eq!(browser.text(&format!("{cells}.slice(0, 3).join('|')")), "1|<b>a</b>|1");
    assert!(browser.text(&format!("{cells}[4]")).contains("<script>window.evil = 1</script>"));
    assert_eq!(browser.value("document.querySelectorAll('#sheet img, #sheet b').length"), 0);
    assert_eq!(browser.value("window.evil === undefined"), true);
}

#[test]
fn filters_and_search_find_and_nothing_said_runs() {
    let project = matrix();
    let Some(browser) = opened(&project) else { return };
    let select = |label: &str, option: &str| {
        browser.run(&format!(
            "const label = [...document.querySelectorAll('#filters label')].find(l => l.firstChild.textContent === '{label}'); \
             const select = label.querySelector('select'); \
             select.value = [...select.options].find(o => o.textContent === '{option}').value; \
             select.dispatchEvent(new Event('input')); return 0"
        ));
    };
    let counts = |words: &str| browser.wait_until(&format!("{COUNT} === '{words}'"));
    select("Right or wrong", "right");
    // The questions 0 to 4, three draws each, by the two workflows that take a reply as it is.
    counts("30 of 720");
    select("topic", "<i>words</i>");
    counts("12 of 720");
    select("Right or wrong", "any");
    counts("360 of 720");
    select("topic", "any");
    counts("720 of 720");
    // What was said is searched too.
    browser.keys(&["/"]);
    browser.typed("What is 7 ");
    counts("12 of 720");
    let first = "document.querySelector('#list .row')";
    browser.wait_until(&format!("{first}.textContent.includes('q7')"));
    // It is text wherever it is shown: in the list, in the details, and in charts.
    assert!(browser.text(&format!("{first}.textContent")).contains("<img src=x"));
    browser.run(&format!("{first}.click(); return 0"));
    browser.wait_until("document.querySelector('#sheet').open");
    assert!(
        browser
            .text("document.querySelector('#sheet').textContent")
            .contains("<script>window.evil")
    );
    assert!(
        browser.text("document.querySelector('#comparison').textContent").contains("<i>words</i>")
    );
    assert_eq!(
        browser.value(
            "document.querySelectorAll('#sheet img, #sheet b, #list b, #comparison i').length"
        ),
        0
    );
    assert_eq!(browser.value("window.evil === undefined"), true);
    // Even if something got in, the policy would keep it from running.
    let blocked = "window.told = false; document.addEventListener('securitypolicyviolation', () => { window.told = true; }); \
                   const script = document.createElement('script'); script.textContent = 'window.evil = 3'; \
                   document.body.append(script); return 0";
    browser.run(blocked);
    browser.wait_until("window.told");
    assert_eq!(browser.value("window.evil === undefined"), true);
}

#[test]
fn a_report_fits_a_phone_in_the_light_and_in_the_dark() {
    let project = matrix();
    let Some(browser) = opened(&project) else { return };
    let shots = std::env::var_os("FORGE_SCREENSHOTS").map(std::path::PathBuf::from);
    for (width, height) in [(1280, 800), (390, 844)] {
        for dark in [false, true] {
            browser.view(width, height, dark);
            let wide =
                "document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.value(wide), 0, "{width} pixels: the page itself scrolls sideways");
            let ground = browser.text("getComputedStyle(document.body).backgroundColor");
            assert_eq!(ground == "rgb(255, 255, 255)", !dark, "{ground}");
            let png = browser.screenshot(true);
            assert!(png.len() > 10_000);
            if let Some(folder) = &shots {
                let name = format!("{width}-{}.png", if dark { "dark" } else { "light" });
                std::fs::write(folder.join(name), png).unwrap();
            }
        }
    }
}
