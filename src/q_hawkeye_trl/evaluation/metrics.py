"""Placeholder until the held-out figures land."""
from scipy import stats
def srcc(predicted, target): return float(stats.spearmanr(predicted, target).statistic)
def plcc(predicted, target): return float(stats.pearsonr(predicted, target).statistic)
