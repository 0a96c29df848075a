"use strict";
// A form with data-post="/ACTION" sends its fields, and those of data-fields, to the server. The
// reply, which the server has escaped, replaces the content of the element data-into.
const [status, alert] = ["status", "alert"].map((id) => document.getElementById(id));
const show = (where, text) => { where.textContent = text; where.hidden = !text; };
const enable = (on) => document.querySelectorAll("button").forEach((button) => { button.disabled = !on; });

async function send(form) {
  const fields = { ...Object.fromEntries(new FormData(form)), ...JSON.parse(form.dataset.fields ?? "{}") };
  const reply = await fetch(form.dataset.post, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Token": document.body.dataset.token },
    body: JSON.stringify(fields),
  });
  const text = await reply.text();
  if (!reply.ok) throw new Error(text);
  const into = document.getElementById(form.dataset.into);
  into.innerHTML = text;
  if (into.tabIndex === -1 && form.dataset.post === "/propose") {
    into.focus({ preventScroll: true });
    into.scrollIntoView({ block: "start", behavior: "smooth" });
  }
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  event.preventDefault();
  if (!form.dataset.post) return;
  const began = Date.now();
  const showTime = () => show(status, `Working … ${Math.round((Date.now() - began) / 1000)} s`);
  const clock = setInterval(showTime, 500);
  show(alert, "");
  showTime();
  enable(false);
  try {
    await send(form);
  } catch (error) {
    show(alert, error instanceof TypeError ? "The server does not answer: is the command still running?" : error.message);
    alert.scrollIntoView({ block: "nearest" });
  } finally {
    clearInterval(clock);
    show(status, "");
    enable(true);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
});
