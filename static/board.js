import { watch } from "/rowcast.js";

const rows = document.getElementById("rows");
watch("/rest/v1/tasks", (changes) => {
  rows.textContent = JSON.stringify(changes, null, 2);
});
