// Panels that Grafana's library draws.
import {
  type DataFrame, FieldType, type TimeRange, VizOrientation, getDisplayValueAlignmentFactors, getFieldDisplayValues,
} from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, VizRepeater, useTheme2 } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { type ReactNode } from 'react';
import { Annotations, type Moment } from './annotations';
import { Heatmap, StateTimeline } from './drawn';
import { fieldConfig } from './fields';

export interface PanelProps {
  panel: any;
  frames: DataFrame[];
  range: TimeRange;
  moments: Moment[];
  width: number;
  height: number;
}

/** Draw the inside of a panel. */
export function Visualization(props: PanelProps): ReactNode {
  const { panel, frames } = props;
  const isEmpty = frames.every((frame) => frame.length === 0);
  if (isEmpty && !['stat', 'bargauge'].includes(panel.type)) {
    return <Nothing text={panel.fieldConfig?.defaults?.noValue ?? 'No data'} />;
  }
  const Kind = KINDS[panel.type];
  return Kind ? <Kind {...props} /> : <Nothing text={`a panel of Grafana's own: ${panel.type}`} />;
}

const KINDS: Record<string, (props: PanelProps) => ReactNode> = {
  stat: Stat,
  bargauge: Bars,
  timeseries: Lines,
  table: Rows,
  heatmap: Heatmap,
  'state-timeline': StateTimeline,
};

export function Nothing({ text }: { text: string }) {
  const theme = useTheme2();
  return (
    <div style={{ display: 'grid', placeItems: 'center', height: '100%', color: theme.colors.text.secondary }}>{text}</div>
  );
}

function Stat({ panel, frames, width, height }: PanelProps) {
  const theme = useTheme2();
  const { options } = panel;
  return (
    <VizRepeater
      getValues={() => displayed(panel, frames, theme, options.graphMode !== 'none')}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, count, alignmentFactors }: any) => (
        <BigValue
          value={value.display} sparkline={value.sparkline} count={count} alignmentFactors={alignmentFactors}
          colorMode={options.colorMode} graphMode={options.graphMode} justifyMode={options.justifyMode}
          textMode={options.textMode} wideLayout={options.wideLayout} text={options.text}
          width={width} height={height} theme={theme}
        />
      )}
      source={frames} renderCounter={0} itemSpacing={3} autoGrid orientation={options.orientation}
      width={width} height={height}
    />
  );
}

function Bars({ panel, frames, width, height }: PanelProps) {
  const theme = useTheme2();
  const { options } = panel;
  return (
    <VizRepeater
      getValues={() => displayed(panel, frames, theme, false)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, count, alignmentFactors, orientation }: any) => (
        <BarGauge
          value={value.display} field={value.field} display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          alignmentFactors={alignmentFactors} orientation={orientation} displayMode={options.displayMode}
          showUnfilled={options.showUnfilled} valueDisplayMode={options.valueMode}
          namePlacement={options.namePlacement} itemSpacing={count > 1 ? 8 : 0} isOverflow={false}
          width={width} height={height} theme={theme}
        />
      )}
      source={frames} renderCounter={0} itemSpacing={8} orientation={options.orientation as VizOrientation}
      minVizWidth={options.minVizWidth} minVizHeight={options.minVizHeight} maxVizHeight={options.maxVizHeight}
      width={width} height={height}
    />
  );
}

function displayed(panel: any, frames: DataFrame[], theme: any, sparkline: boolean) {
  return getFieldDisplayValues({
    fieldConfig: fieldConfig(panel) as any,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    data: frames,
    sparkline,
    theme,
    timeZone: 'utc',
  });
}

function Lines({ panel, frames, range, moments, width, height }: PanelProps) {
  return (
    <TimeSeries
      frames={frames.map(finite)}
      legend={panel.options.legend} options={panel.options} timeRange={range} timeZone="utc" width={width} height={height}
      structureRev={1}
    >
      {(config: any) => <Annotations config={config} moments={moments} />}
    </TimeSeries>
  );
}

/** Grafana draws nothing where a value is no number. */
function finite(frame: DataFrame): DataFrame {
  const fields = frame.fields.map((field) =>
    field.type === FieldType.number
      ? { ...field, values: field.values.map((value) => (Number.isFinite(value) ? value : null)) }
      : field
  );
  return { ...frame, fields };
}

function Rows({ panel, frames, range, width, height }: PanelProps) {
  return (
    <TableNG
      data={frames[0]} width={width} height={height} cellHeight={panel.options.cellHeight}
      initialSortBy={panel.options.sortBy} noHeader={!panel.options.showHeader} fieldConfig={fieldConfig(panel) as any}
      enableVirtualization={false} timeRange={range} structureRev={1} getActions={() => []}
    />
  );
}
