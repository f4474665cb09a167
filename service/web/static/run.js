// Updates a run's page while it is visible: polls the run, and reloads the page when its state or a stage
// changes. It keeps no connection open, of which a browser has six for all its tabs, and a hidden tab does
// not poll.
"use strict";
const run = document.getElementById("run");
if (run.dataset.live === "yes") {
  const EVERY = 2000;
  const text = (id, value) => { document.getElementById(id).textContent = value; };
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;
  const show = (progress) => {
    document.getElementById("progress").hidden = false;
    text("stage", progress.stage);
    text("steps", `${progress.step} of ${progress.total_steps}`);
    if (progress.seconds_left != null) text("left", `${clock(progress.seconds_left)} left in this stage`);
    const bar = document.getElementById("bar");
    bar.max = progress.total_steps;
    bar.value = progress.step;
  };
  let waiting = null;
  let polling = false;
  const poll = async () => {
    const answer = await fetch(`/api/v1/runs/${run.dataset.id}`, { cache: "no-store" });
    if (answer.status === 401 || answer.status === 404) return false;
    if (answer.status !== 200) return true;
    const now = await answer.json();
    const changed = now.state !== run.dataset.state || String(now.stages.length) !== run.dataset.stages;
    if (changed) location.reload();
    else if (now.progress) show(now.progress);
    return !changed;
  };
  const look = async () => {
    if (document.hidden || polling) return;
    clearTimeout(waiting);
    polling = true;
    const more = await poll().catch(() => true); // a lab that restarts is polled again
    polling = false;
    if (more) waiting = setTimeout(look, EVERY);
  };
  document.addEventListener("visibilitychange", look);
  look();
}
