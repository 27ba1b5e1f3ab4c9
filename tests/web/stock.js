// The page with what it loads by itself, for what it complains about where this pack is not.

module.exports = async (page) => {
  await page.evaluate(async () => {
    await app.loadGraphData();
    await app.graphToPrompt();
  });
  await page.waitForTimeout(1000); // some of its requests come late
};
