//! The HTML report in a real browser: what a reader sees, with the keyboard alone too.

use super::browser::Browser;
use super::project::Project;

#[test]
fn what_a_model_says_does_not_run() {
    let Some(browser) = Browser::start() else { return };
    let evil = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>";
    let project = Project::with("", &format!("replies = [{{ reply = \"\"\"{evil}\"\"\" }}]"));
    project.ok(&[]);
    browser.open_file(&project.path("out/bench/report/report.html"));
    browser.wait_until("document.querySelector('#count').textContent.includes('10 of 10')");
    assert_eq!(browser.value("window.evil === undefined"), true);
}
