// One dashboard, whole: page.html?dashboard=overview&prometheus=URL&from=MILLISECONDS&to=MILLISECONDS[&var-NAME=VALUE]
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import { type DataFrame, type TimeRange, createTheme, dateTime, dateTimeFormat, locationUtil } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { ErrorBoundaryAlert, GlobalStyles, Icon, PanelChrome, ThemeContext, useTheme2 } from '@grafana/ui';
import { type ReactNode } from 'react';
import { createRoot } from 'react-dom/client';
import { type Moment, readMoments } from './annotations';
import { AlertList, type FiringAlert } from './drawn';
import { prepare } from './fields';
import { Nothing, Visualization } from './panels';
import { ask, readFrames } from './prometheus';
import { type Variable, readVariables, replace } from './variables';

const PADDING = 16;
const GAP = 8;
/** Of a row of Grafana's grid, without the gap. */
const ROW = 30;
const COLUMNS = 24;

interface Loaded {
  panel: any;
  frames: DataFrame[];
  alerts: FiringAlert[];
  problem?: string;
}

interface Placed {
  left: number;
  top: number;
  width: number;
  height: number;
}

function place({ x, y, w, h }: { x: number; y: number; w: number; h: number }): Placed {
  const column = (innerWidth - 2 * PADDING - (COLUMNS - 1) * GAP) / COLUMNS;
  return {
    left: x * (column + GAP), top: y * (ROW + GAP), width: w * (column + GAP) - GAP, height: h * (ROW + GAP) - GAP,
  };
}

async function load(panel: any, range: TimeRange, variables: Variable[]): Promise<Loaded> {
  const theme = createTheme({ colors: { mode: 'dark' } });
  try {
    const frames = await readFrames(panel, place(panel.gridPos).width, range, variables);
    const alerts = panel.type === 'alertlist' ? await readAlerts(panel) : [];
    return { panel, alerts, frames: await prepare(panel, frames, theme, (text) => replace(text, variables)) };
  } catch (error) {
    console.error(panel.title, error);
    return { panel, frames: [], alerts: [], problem: String(error) };
  }
}

async function readAlerts(panel: any): Promise<FiringAlert[]> {
  const component = /component="(\w+)"/.exec(panel.options.alertInstanceLabelFilter)?.[1];
  const { alerts } = await ask('alerts');
  return alerts
    .filter((alert: FiringAlert) => !component || alert.labels.component === component)
    .sort((one: FiringAlert, other: FiringAlert) => one.state.localeCompare(other.state))
    .slice(0, panel.options.maxItems);
}

function Panel({ loaded, range, moments }: { loaded: Loaded; range: TimeRange; moments: Moment[] }) {
  const { panel, frames, alerts, problem } = loaded;
  const { width, height, ...at } = place(panel.gridPos);
  if (panel.type === 'row') {
    return (
      <div style={{ position: 'absolute', ...at, width, height, display: 'flex', alignItems: 'center', gap: 8 }}>
        <Icon name="angle-down" />
        <span style={{ fontSize: 18, fontWeight: 500 }}>{panel.title}</span>
      </div>
    );
  }
  const inside = (innerWidth: number, innerHeight: number): ReactNode => {
    if (problem) {
      return <Nothing text={problem} />;
    }
    if (panel.type === 'alertlist') {
      return alerts.length ? <AlertList alerts={alerts} range={range} /> : <Nothing text="No alerts matching filters" />;
    }
    return <Visualization {...{ panel, frames, range, moments }} width={innerWidth} height={innerHeight} />;
  };
  const padding = ['stat', 'table'].includes(panel.type) ? 'none' : 'md';
  return (
    <div style={{ position: 'absolute', ...at, width, height }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height} padding={padding}>
        {(...size) => <ErrorBoundaryAlert>{inside(...size)}</ErrorBoundaryAlert>}
      </PanelChrome>
    </div>
  );
}

function Bar({ dashboard, variables, range }: { dashboard: any; variables: Variable[]; range: TimeRange }) {
  const theme = useTheme2();
  const box = {
    border: `1px solid ${theme.colors.border.medium}`, padding: '4px 8px', borderRadius: 2,
    background: theme.colors.background.primary,
  };
  const time = (at: number) => dateTimeFormat(at, { format: 'YYYY-MM-DD HH:mm', timeZone: 'utc' });
  return (
    <div style={{ paddingBottom: 12 }}>
      <div style={{ display: 'flex', gap: 12, alignItems: 'center', paddingBottom: 12 }}>
        <span style={{ fontSize: 20, fontWeight: 500 }}>{dashboard.title}</span>
        <span style={{ color: theme.colors.text.secondary, flex: 1 }}>rendered with Grafana&rsquo;s UI library, not Grafana</span>
        <span style={box}><Icon name="clock-nine" /> {time(range.from.valueOf())} to {time(range.to.valueOf())}</span>
      </div>
      <div style={{ display: 'flex', gap: 8 }}>
        {variables.filter(({ hidden }) => !hidden).map(({ name, label, text }) => (
          <div key={name} style={{ display: 'flex' }}>
            <span style={{ ...box, background: theme.colors.background.secondary, fontWeight: 500 }}>{label}</span>
            <span style={{ ...box, borderLeft: 'none' }}>{text}</span>
          </div>
        ))}
        <span style={{ flex: 1 }} />
        {dashboard.links.map((link: any) => (
          <span key={link.title} style={box}><Icon name="external-link-alt" /> {link.title} <Icon name="angle-down" /></span>
        ))}
      </div>
    </div>
  );
}

async function main() {
  const page = new URLSearchParams(location.search);
  await initPluginTranslations('celery-lookout-pictures');
  const dashboard = await (await fetch(`/dashboards/${page.get('dashboard')}.json`)).json();
  const [from, to] = [dateTime(Number(page.get('from'))), dateTime(Number(page.get('to')))];
  const range: TimeRange = { from, to, raw: { from, to } };
  locationUtil.initialize({
    config: { appSubUrl: '' } as any, getTimeRangeForUrl: () => range.raw, getVariablesUrlParams: () => ({}),
  });
  const variables = await readVariables(dashboard, page);
  const moments = await readMoments(dashboard, range, variables);
  const loaded = await Promise.all(dashboard.panels.map((panel: any) => load(panel, range, variables)));
  const rows = Math.max(...dashboard.panels.map(({ gridPos }: any) => gridPos.y + gridPos.h));
  const theme = createTheme({ colors: { mode: 'dark' } });
  createRoot(document.getElementById('page')!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div id="dashboard" style={{ padding: PADDING, background: theme.colors.background.canvas }}>
        <Bar {...{ dashboard, variables, range }} />
        <div style={{ position: 'relative', height: rows * (ROW + GAP) - GAP }}>
          {loaded.map((one) => <Panel key={one.panel.id} loaded={one} {...{ range, moments }} />)}
        </div>
      </div>
    </ThemeContext.Provider>
  );
  // Seen from outside: which panels have nothing to show, and that the page is there.
  const empty = loaded
    .filter(({ panel, frames }) => panel.targets && frames.every((frame) => frame.length === 0))
    .map(({ panel, problem }) => `${panel.id} ${panel.title}${problem ? `: ${problem}` : ''}`);
  await document.fonts.ready;
  setTimeout(() => Object.assign(window, { ready: { empty } }), 1500);
}

main().catch((error) => Object.assign(window, { ready: { failed: String(error.stack ?? error) } }));
