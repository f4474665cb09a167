// Keeps a run's page alive: progress by server-sent events, and a reload when its state or a stage changes.
"use strict";
const run = document.getElementById("run");
if (run.dataset.live === "yes") {
  const text = (id, value) => { document.getElementById(id).textContent = value; };
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;
  const show = (body) => {
    document.getElementById("progress").hidden = false;
    text("stage", body.stage);
    text("steps", `${body.step} of ${body.total_steps}`);
    if (body.seconds_left != null) text("left", `${clock(body.seconds_left)} left in this stage`);
    const bar = document.getElementById("bar");
    bar.max = body.total_steps;
    bar.value = body.step;
  };
  const stream = new EventSource(`/api/v1/runs/${run.dataset.id}/events?after=${run.dataset.after}`);
  stream.addEventListener("state", () => location.reload());
  stream.addEventListener("end", () => { stream.close(); location.reload(); });
  stream.addEventListener("attempt", (message) => {
    const body = JSON.parse(message.data).event.body;
    if (body.type === "progress") show(body);
    if (body.type === "stage_done") location.reload();
  });
}
